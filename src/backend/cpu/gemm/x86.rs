//! Kernels of `gemm` for x86: multiply-add tiles for AVX-512 and AVX2, and 8 by 8 transpositions.

use super::kernel::Kernel;
use std::arch::x86_64::*;

/// Lists one instance of a kernel for each number of rows.
macro_rules! for_rows {
    ($kernel:ident, $columns:tt; $($rows:literal)*) => { [$($kernel::<$rows, $columns>),*] };
}

pub static WIDE4: [Kernel; 6] = for_rows!(wide, 4; 1 2 3 4 5 6);
pub static WIDE2: [Kernel; 12] = for_rows!(wide, 2; 1 2 3 4 5 6 7 8 9 10 11 12);
pub static WIDE1: [Kernel; 12] = for_rows!(wide, 1; 1 2 3 4 5 6 7 8 9 10 11 12);
pub static NARROW: [Kernel; 6] = [narrow::<1>, narrow::<2>, narrow::<3>, narrow::<4>, narrow::<5>, narrow::<6>];

/// Computes M rows by V vectors of 16 columns, with the sums in registers.
///
/// # Safety
/// The processor has AVX-512F; A, B and C hold what the sizes and strides name.
#[target_feature(enable = "avx512f")]
#[allow(clippy::too_many_arguments)]
unsafe fn wide<const M: usize, const V: usize>(
    k: usize,
    a: *const f32,
    row: usize,
    step: usize,
    mut b: *const f32,
    b_width: usize,
    c: *mut f32,
    c_width: usize,
) {
    let mut sums = [[_mm512_setzero_ps(); V]; M];
    // SAFETY: the caller's promise.
    unsafe {
        for p in 0..k {
            let mut y = [_mm512_setzero_ps(); V];
            for (v, y) in y.iter_mut().enumerate() {
                *y = _mm512_loadu_ps(b.add(16 * v));
            }
            for (i, sum) in sums.iter_mut().enumerate() {
                let x = _mm512_set1_ps(*a.add(i * row + p * step));
                for (s, y) in sum.iter_mut().zip(&y) {
                    *s = _mm512_fmadd_ps(x, *y, *s);
                }
            }
            b = b.wrapping_add(b_width);
        }
        for (i, sum) in sums.iter().enumerate() {
            for (v, s) in sum.iter().enumerate() {
                let c = c.add(i * c_width + 16 * v);
                _mm512_storeu_ps(c, _mm512_add_ps(_mm512_loadu_ps(c), *s));
            }
        }
    }
}

/// Arguments: columns (a multiple of 16), steps, A with its two strides, B's rows as bytes and their distance in
/// elements, C with the distance between rows.
pub type Slim = unsafe fn(usize, usize, *const f32, usize, usize, *const u8, usize, *mut f32, usize);
pub static SLIM_F32: [Slim; 6] = [
    slim::<1, 2, false>,
    slim::<2, 2, false>,
    slim::<3, 1, false>,
    slim::<4, 1, false>,
    slim::<5, 1, false>,
    slim::<6, 1, false>,
];
pub static SLIM_BF16: [Slim; 6] = [
    slim::<1, 2, true>,
    slim::<2, 2, true>,
    slim::<3, 1, true>,
    slim::<4, 1, true>,
    slim::<5, 1, true>,
    slim::<6, 1, true>,
];

/// Computes M rows of C += A B^T with B (N, K) in f32 or bf16: G groups of 8 columns at a time, 32 bytes of each of
/// their rows. A pair of bf16 goes through the transposition as one 32-bit word and is widened after it.
///
/// # Safety
/// The processor has AVX2 and FMA; A, B and C hold what the sizes and strides name; steps fill whole 32 bytes of B.
#[target_feature(enable = "avx2,fma")]
#[allow(clippy::too_many_arguments)]
unsafe fn slim<const M: usize, const G: usize, const BF16: bool>(
    n: usize,
    steps: usize,
    a: *const f32,
    row: usize,
    step: usize,
    b: *const u8,
    b_width: usize,
    c: *mut f32,
    c_width: usize,
) {
    let size = if BF16 { 2 } else { 4 };
    for j in (0..n).step_by(8 * G) {
        // SAFETY: the caller's promise.
        unsafe {
            let mut sums = [[_mm256_setzero_ps(); G]; M];
            for p in (0..steps).step_by(32 / size) {
                for g in 0..G {
                    let from = b.add(((j + 8 * g) * b_width + p) * size);
                    let lines = transpose_words(std::array::from_fn(|i| from.add(i * b_width * size).cast()));
                    for (s, &line) in lines.iter().enumerate() {
                        let word = _mm256_castps_si256(line);
                        let high = _mm256_castsi256_ps(_mm256_and_si256(word, _mm256_set1_epi32(-65536)));
                        let low = _mm256_castsi256_ps(_mm256_slli_epi32(word, 16));
                        for (i, sum) in sums.iter_mut().enumerate() {
                            let x = a.add(i * row);
                            if BF16 {
                                let p = p + 2 * s;
                                sum[g] = _mm256_fmadd_ps(_mm256_set1_ps(*x.add(p * step)), low, sum[g]);
                                sum[g] = _mm256_fmadd_ps(_mm256_set1_ps(*x.add((p + 1) * step)), high, sum[g]);
                            } else {
                                sum[g] = _mm256_fmadd_ps(_mm256_set1_ps(*x.add((p + s) * step)), line, sum[g]);
                            }
                        }
                    }
                }
            }
            for (i, sum) in sums.iter().enumerate() {
                for (g, s) in sum.iter().enumerate() {
                    let c = c.add(i * c_width + j + 8 * g);
                    _mm256_storeu_ps(c, _mm256_add_ps(_mm256_loadu_ps(c), *s));
                }
            }
        }
    }
}

/// Transposes eight words of each of eight rows into eight columns. The halves are joined while they are loaded, so
/// that only sixteen shuffles are left.
///
/// # Safety
/// The rows can be read.
#[target_feature(enable = "avx2")]
#[inline]
unsafe fn transpose_words(rows: [*const f32; 8]) -> [__m256; 8] {
    let mut out = [_mm256_setzero_ps(); 8];
    for half in 0..2 {
        let mut r = [_mm256_setzero_ps(); 4];
        for (i, r) in r.iter_mut().enumerate() {
            // SAFETY: the caller's promise.
            unsafe {
                let (low, high) = (rows[i].add(4 * half), rows[i + 4].add(4 * half));
                *r = _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(low)), _mm_loadu_ps(high), 1);
            }
        }
        let t = [
            _mm256_unpacklo_ps(r[0], r[1]),
            _mm256_unpackhi_ps(r[0], r[1]),
            _mm256_unpacklo_ps(r[2], r[3]),
            _mm256_unpackhi_ps(r[2], r[3]),
        ];
        out[4 * half] = _mm256_shuffle_ps(t[0], t[2], 0x44);
        out[4 * half + 1] = _mm256_shuffle_ps(t[0], t[2], 0xEE);
        out[4 * half + 2] = _mm256_shuffle_ps(t[1], t[3], 0x44);
        out[4 * half + 3] = _mm256_shuffle_ps(t[1], t[3], 0xEE);
    }
    out
}

/// Computes M rows by 16 columns.
///
/// # Safety
/// The processor has AVX2 and FMA; A, B and C hold what the sizes and strides name.
#[target_feature(enable = "avx2,fma")]
#[allow(clippy::too_many_arguments)]
unsafe fn narrow<const M: usize>(
    k: usize,
    a: *const f32,
    row: usize,
    step: usize,
    mut b: *const f32,
    b_width: usize,
    c: *mut f32,
    c_width: usize,
) {
    let mut sums = [[_mm256_setzero_ps(); 2]; M];
    // SAFETY: the caller's promise.
    unsafe {
        for p in 0..k {
            let y = [_mm256_loadu_ps(b), _mm256_loadu_ps(b.add(8))];
            for (i, sum) in sums.iter_mut().enumerate() {
                let x = _mm256_set1_ps(*a.add(i * row + p * step));
                sum[0] = _mm256_fmadd_ps(x, y[0], sum[0]);
                sum[1] = _mm256_fmadd_ps(x, y[1], sum[1]);
            }
            b = b.wrapping_add(b_width);
        }
        for (i, sum) in sums.iter().enumerate() {
            let c = c.add(i * c_width);
            _mm256_storeu_ps(c, _mm256_add_ps(_mm256_loadu_ps(c), sum[0]));
            _mm256_storeu_ps(c.add(8), _mm256_add_ps(_mm256_loadu_ps(c.add(8)), sum[1]));
        }
    }
}

/// Transposes eight rows into eight columns.
///
/// # Safety
/// The processor has AVX2; there are 8 rows of at least `k` elements, and `out` has `k` rows of 8, `width` apart.
#[target_feature(enable = "avx2")]
pub unsafe fn transpose8(rows: &[&[f32]], k: usize, out: *mut f32, width: usize) {
    let whole = k / 8 * 8;
    for p in (0..whole).step_by(8) {
        // SAFETY: the caller's promise.
        unsafe {
            let columns = transpose_words(std::array::from_fn(|i| rows[i].as_ptr().add(p)));
            for (i, column) in columns.into_iter().enumerate() {
                _mm256_storeu_ps(out.add((p + i) * width), column);
            }
        }
    }
    for p in whole..k {
        for (j, row) in rows.iter().enumerate() {
            // SAFETY: the caller's promise.
            unsafe { *out.add(p * width + j) = row[p] };
        }
    }
}
