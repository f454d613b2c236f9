//! Matrix products in f32: C += alpha A B, with the right operand packed (and widened) panel by panel.
//!
//! Each element of C is a sum of chains, added one after the other to what C holds. A chain is `DEPTH` multiply-adds
//! over the contraction in ascending order, starting from zero; one chain over a whole long contraction rounds several
//! times worse. Blocking, threads and the number of rows only decide when a link is computed, never the order, so a row
//! has the same bits alone, in any batch and on any number of threads.

use super::simd::{Floats, Level, level};
use kernel::Kernel;
use rayon::prelude::*;
use std::cell::RefCell;

/// Columns of a packed panel.
const PANEL: usize = 64;
/// Contraction steps of a packed panel and of a chain; a panel takes 64 KiB, for the second-level cache.
const DEPTH: usize = 256;
/// Rows and columns of C per task.
const TASK_ROWS: usize = 384;
const TASK_COLUMNS: usize = 256;
/// Contraction steps per partial sum of `gemm_reduce`.
const REDUCE: usize = 1024;
/// Products below this many estimated cycles stay on the calling thread, because handing them out costs more.
const SERIAL_CYCLES: usize = 60_000;
/// Columns of the narrowest kernel; panels are padded to it.
pub(super) const LANES: usize = 16;

/// The left operand (M, K): element (i, p) is `data[i * row + p * step]`.
#[derive(Clone, Copy)]
pub(super) struct Left<'a> {
    data: &'a [f32],
    row: usize,
    step: usize,
}

impl<'a> Left<'a> {
    /// A row-major (M, K) matrix whose rows are `width` apart.
    pub fn rows(data: &'a [f32], width: usize) -> Self {
        Self { data, row: width, step: 1 }
    }

    /// The transpose of a row-major (K, M) matrix whose rows are `width` apart.
    pub fn columns(data: &'a [f32], width: usize) -> Self {
        Self { data, row: 1, step: width }
    }

    /// Drops the first `rows` rows and `steps` contraction steps.
    fn from(self, rows: usize, steps: usize) -> Self {
        Self { data: &self.data[rows * self.row + steps * self.step..], ..self }
    }
}

/// The right operand (K, N), of any float type.
#[derive(Clone, Copy)]
pub(super) struct Right<'a> {
    data: Floats<'a>,
    width: usize,
    transposed: bool,
}

impl<'a> Right<'a> {
    /// A row-major (K, N) matrix whose rows are `width` apart.
    pub fn rows(data: Floats<'a>, width: usize) -> Self {
        Self { data, width, transposed: false }
    }

    /// The transpose of a row-major (N, K) matrix whose rows are `width` apart, such as a weight as it is stored.
    pub fn columns(data: Floats<'a>, width: usize) -> Self {
        Self { data, width, transposed: true }
    }
}

/// One product of a sum: alpha A B with a contraction of length `k`.
#[derive(Clone, Copy)]
pub(super) struct Term<'a> {
    pub k: usize,
    pub alpha: f32,
    pub a: Left<'a>,
    pub b: Right<'a>,
}

/// Value that the chains are added to.
#[derive(Clone, Copy)]
pub(super) enum Start<'a> {
    /// The value in C.
    Held,
    Zero,
    /// The element of this row (N) at the column.
    Row(&'a [f32]),
}

/// Computes C (M, N) = start + the terms in order. The rows of C are `width` apart, and its slice begins at its first
/// element.
pub(super) fn gemm(m: usize, n: usize, start: Start, terms: &[Term], c: &mut [f32], width: usize) {
    if m == 0 || n == 0 {
        return;
    }
    assert!((m - 1) * width + n <= c.len() && n <= width, "C is too short");
    let column_tasks = n.div_ceil(TASK_COLUMNS);
    let tasks = m.div_ceil(TASK_ROWS) * column_tasks;
    let output = Output(c.as_mut_ptr());
    let run = |task: usize| {
        let (i, j) = (task / column_tasks * TASK_ROWS, task % column_tasks * TASK_COLUMNS);
        let (rows, columns) = (TASK_ROWS.min(m - i), TASK_COLUMNS.min(n - j));
        // SAFETY: (i, j) + (rows, columns) lies inside C by the assertion above, and the tasks' rectangles are
        // disjoint.
        unsafe { rectangle((i, rows), (j, columns), start, terms, output.at(i * width + j), width) };
    };
    let k: usize = terms.iter().map(|term| term.k).sum();
    if tasks == 1 || n * k * (m + 8) / 32 < SERIAL_CYCLES {
        (0..tasks).for_each(run);
    } else {
        (0..tasks).into_par_iter().for_each(run);
    }
}

/// Adds to C one term with a long contraction, for a small C: sums fixed pieces of the contraction separately, then
/// adds the pieces in order.
pub(super) fn gemm_reduce(m: usize, n: usize, term: Term, c: &mut [f32], width: usize) {
    let Term { k, a, b, .. } = term;
    if k <= REDUCE || m.div_ceil(TASK_ROWS) * n.div_ceil(TASK_COLUMNS) > 4 {
        return gemm(m, n, Start::Held, &[term], c, width);
    }
    let partials: Vec<Vec<f32>> = (0..k.div_ceil(REDUCE))
        .into_par_iter()
        .map(|piece| {
            let start = piece * REDUCE;
            let mut partial = vec![0.0; m * n];
            let b = Right { data: b.data.from(if b.transposed { start } else { start * b.width }), ..b };
            let term = Term { k: REDUCE.min(k - start), a: a.from(0, start), b, ..term };
            gemm(m, n, Start::Held, &[term], &mut partial, n);
            partial
        })
        .collect();
    for partial in partials {
        for (row, sums) in c.chunks_mut(width).zip(partial.chunks_exact(n)) {
            row.iter_mut().zip(sums).for_each(|(c, s)| *c += s);
        }
    }
}

/// Computes C (M, N) += A B on this thread, without packing. B is f32; its rows are `b_width` apart and readable up to
/// a multiple of `LANES` columns.
#[allow(clippy::too_many_arguments)]
pub(super) fn multiply(
    m: usize,
    n: usize,
    k: usize,
    a: Left,
    b: &[f32],
    b_width: usize,
    c: &mut [f32],
    c_width: usize,
) {
    if m == 0 || n == 0 || k == 0 {
        return;
    }
    assert!((m - 1) * c_width + n <= c.len() && n <= c_width, "C is too short");
    // SAFETY: the output lies inside `c`.
    unsafe { multiply_to((m, n, k), a, b, b_width, c.as_mut_ptr(), c_width) }
}

/// Sets `out[p * width + j] = rows[j][p]` for p below `k`; columns from `rows.len()` up to the next multiple of `LANES`
/// become 0.
pub(super) fn transpose(rows: &[&[f32]], k: usize, out: &mut [f32], width: usize) {
    assert!(rows.iter().all(|row| row.len() >= k), "a row is too short");
    let padded = rows.len().next_multiple_of(LANES);
    assert!(k == 0 || (k - 1) * width + padded <= out.len() && padded <= width, "the panel is too short");
    let mut done = 0;
    #[cfg(target_arch = "x86_64")]
    if level() != Level::Portable {
        while done + 8 <= rows.len() {
            // SAFETY: AVX2 is there at this level, the rows hold k elements and the panel k rows of `padded` columns.
            unsafe { transpose8(&rows[done..done + 8], k, out.as_mut_ptr().add(done), width) };
            done += 8;
        }
    }
    for p in 0..k {
        let line = &mut out[p * width..p * width + padded];
        for (x, row) in line[done..].iter_mut().zip(&rows[done..]) {
            *x = row[p];
        }
        line[rows.len()..].fill(0.0);
    }
}

#[derive(Clone, Copy)]
struct Output(*mut f32);
// SAFETY: `gemm` hands each task its own rectangle of the output, which outlives the tasks.
unsafe impl Send for Output {}
// SAFETY: as above.
unsafe impl Sync for Output {}

impl Output {
    /// # Safety
    /// The element at `offset` lies inside the output.
    unsafe fn at(self, offset: usize) -> *mut f32 {
        // SAFETY: the caller's promise.
        unsafe { self.0.add(offset) }
    }
}

thread_local! {
    /// A packed panel, and rows widened on the way to it.
    static PANELS: RefCell<(Vec<f32>, Vec<f32>)> = const { RefCell::new((Vec::new(), Vec::new())) };
}

/// Computes one task: rows from `i` and columns from `j`, over the whole contraction of every term.
///
/// # Safety
/// `c` points at (m, n) elements, rows `width` apart, that nobody else touches.
unsafe fn rectangle(
    (i, m): (usize, usize),
    (j, n): (usize, usize),
    start: Start,
    terms: &[Term],
    c: *mut f32,
    width: usize,
) {
    PANELS.with_borrow_mut(|(panel, wide)| {
        panel.resize(PANEL * DEPTH, 0.0);
        for q in (0..n).step_by(PANEL) {
            let columns = PANEL.min(n - q);
            for r in 0..m {
                // SAFETY: row r of the rectangle is the caller's.
                let row = unsafe { std::slice::from_raw_parts_mut(c.add(r * width + q), columns) };
                match start {
                    Start::Held => break,
                    Start::Zero => row.fill(0.0),
                    Start::Row(values) => row.copy_from_slice(&values[j + q..][..columns]),
                }
            }
            for term in terms {
                // SAFETY: the caller's promise.
                let done = unsafe { slim((i, m), (j + q, columns), term, c.add(q), width) };
                for p in (done..term.k).step_by(DEPTH) {
                    let depth = DEPTH.min(term.k - p);
                    pack(&term.b, (p, depth), (j + q, columns), term.alpha, panel, wide);
                    // SAFETY: the caller's promise.
                    unsafe { multiply_to((m, columns, depth), term.a.from(i, p), panel, PANEL, c.add(q), width) };
                }
            }
        }
    });
}

/// Computes few rows of C from a weight as it is stored, transposing it in registers instead of packing it, so that
/// decoding reads each weight once. Returns the number of contraction steps done: 0 when the shape or the processor
/// does not suit.
///
/// # Safety
/// `c` points at (m, n) elements, rows `width` apart, that nobody else touches.
#[cfg(target_arch = "x86_64")]
unsafe fn slim((i, m): (usize, usize), (j, n): (usize, usize), term: &Term, c: *mut f32, width: usize) -> usize {
    let (a, b) = (&term.a, &term.b);
    let suits = m <= x86::SLIM_F32.len() && n.is_multiple_of(LANES) && b.transposed && term.alpha == 1.0;
    if !suits || level() == Level::Portable {
        return 0;
    }
    let first = j * b.width;
    let (word, kernel, weights, size) = match b.data.from(first) {
        Floats::F32(w) => (8, &x86::SLIM_F32, w.as_ptr().cast::<u8>(), 4),
        Floats::BF16(w) => (16, &x86::SLIM_BF16, w.as_ptr().cast::<u8>(), 2),
        _ => return 0,
    };
    // Only whole chains: a panel would compute the rest of a chain as a chain of its own.
    let steps = if term.k.is_multiple_of(word) { term.k } else { term.k / DEPTH * DEPTH };
    if steps == 0 {
        return 0;
    }
    assert!((i + m - 1) * a.row + (steps - 1) * a.step < a.data.len(), "A is too short");
    assert!((n - 1) * b.width + steps <= b.data.from(first).len(), "B is too short");
    for p in (0..steps).step_by(DEPTH) {
        let a_from = a.data[i * a.row + p * a.step..].as_ptr();
        let depth = DEPTH.min(steps - p);
        // SAFETY: A and B hold what the kernel reads, C is the caller's, and the processor has AVX2 and FMA.
        unsafe { kernel[m - 1](n, depth, a_from, a.row, a.step, weights.add(p * size), b.width, c, width) };
    }
    steps
}

/// Does nothing: there is no such kernel on this architecture.
///
/// # Safety
/// Always safe: it touches nothing.
#[cfg(not(target_arch = "x86_64"))]
unsafe fn slim(_: (usize, usize), _: (usize, usize), _: &Term, _: *mut f32, _: usize) -> usize {
    0
}

/// Packs steps p.. and columns j.. of alpha B, widened, into rows of PANEL; pads with zeros to a multiple of `LANES`
/// columns.
fn pack(
    b: &Right,
    (p, depth): (usize, usize),
    (j, columns): (usize, usize),
    alpha: f32,
    panel: &mut [f32],
    wide: &mut Vec<f32>,
) {
    if b.transposed {
        let mut rows: [&[f32]; PANEL] = [&[]; PANEL];
        match b.data {
            Floats::F32(data) => {
                for (i, row) in rows[..columns].iter_mut().enumerate() {
                    *row = &data[(j + i) * b.width + p..][..depth];
                }
            }
            _ => {
                wide.resize(PANEL * DEPTH, 0.0);
                for (i, row) in wide.chunks_exact_mut(DEPTH).take(columns).enumerate() {
                    b.data.widen((j + i) * b.width + p, &mut row[..depth]);
                }
                for (row, wide) in rows[..columns].iter_mut().zip(wide.chunks_exact(DEPTH)) {
                    *row = &wide[..depth];
                }
            }
        }
        transpose(&rows[..columns], depth, panel, PANEL);
    } else {
        let padded = columns.next_multiple_of(LANES);
        for (i, row) in panel.chunks_exact_mut(PANEL).take(depth).enumerate() {
            b.data.widen((p + i) * b.width + j, &mut row[..columns]);
            row[columns..padded].fill(0.0);
        }
    }
    if alpha != 1.0 {
        panel[..depth * PANEL].iter_mut().for_each(|x| *x *= alpha);
    }
}

/// # Safety
/// `c` points at (m, n) elements, rows `c_width` apart, that nobody else touches.
unsafe fn multiply_to(
    (m, n, k): (usize, usize, usize),
    a: Left,
    b: &[f32],
    b_width: usize,
    c: *mut f32,
    c_width: usize,
) {
    assert!((m - 1) * a.row + (k - 1) * a.step < a.data.len(), "A is too short");
    assert!((k - 1) * b_width + n.next_multiple_of(LANES) <= b.len(), "B is too short");
    let mut j = 0;
    while j < n {
        let (columns, kernels) = kernels(level(), n - j);
        let strips = m.div_ceil(kernels.len());
        let mut i = 0;
        for strip in 0..strips {
            let rows = (m - i).div_ceil(strips - strip);
            let kernel = kernels[rows - 1];
            let (x, y) = (a.data[i * a.row..].as_ptr(), b[j..].as_ptr());
            // SAFETY: A, B and C hold what the kernel reads and writes, by the assertions and the caller; the table has
            // only kernels that this processor can run.
            unsafe {
                let z = c.add(i * c_width + j);
                if columns <= n - j {
                    kernel(k, x, a.row, a.step, y, b_width, z, c_width);
                } else {
                    let mut tile = [0.0f32; LANES * MOST_ROWS];
                    for r in 0..rows {
                        std::ptr::copy_nonoverlapping(z.add(r * c_width), tile[r * LANES..].as_mut_ptr(), n - j);
                    }
                    kernel(k, x, a.row, a.step, y, b_width, tile.as_mut_ptr(), LANES);
                    for r in 0..rows {
                        std::ptr::copy_nonoverlapping(tile[r * LANES..].as_ptr(), z.add(r * c_width), n - j);
                    }
                }
            }
            i += rows;
        }
        j += columns;
    }
}

/// Rows of the tallest kernel.
const MOST_ROWS: usize = 12;

/// Returns the widest kernels for `n` columns left (the narrowest when there are fewer): the columns they take, and one
/// kernel per number of rows.
fn kernels(level: Level, n: usize) -> (usize, &'static [Kernel]) {
    match level {
        #[cfg(target_arch = "x86_64")]
        Level::Avx512 => match n {
            64.. => (64, &x86::WIDE4),
            32.. => (32, &x86::WIDE2),
            _ => (16, &x86::WIDE1),
        },
        #[cfg(target_arch = "x86_64")]
        Level::Avx2 => (16, &x86::NARROW),
        _ => (16, &PORTABLE),
    }
}

static PORTABLE: [Kernel; 4] = [portable::<1>, portable::<2>, portable::<3>, portable::<4>];

/// # Safety
/// A, B and C hold what the sizes and strides name.
#[allow(clippy::too_many_arguments)]
unsafe fn portable<const M: usize>(
    k: usize,
    a: *const f32,
    row: usize,
    step: usize,
    b: *const f32,
    b_width: usize,
    c: *mut f32,
    c_width: usize,
) {
    let mut sums = [[0.0f32; LANES]; M];
    // SAFETY: the caller's promise.
    unsafe {
        for p in 0..k {
            let line = &*b.add(p * b_width).cast::<[f32; LANES]>();
            for (i, sum) in sums.iter_mut().enumerate() {
                let x = *a.add(i * row + p * step);
                sum.iter_mut().zip(line).for_each(|(s, y)| *s += x * y);
            }
        }
        for (i, sum) in sums.iter().enumerate() {
            let line = &mut *c.add(i * c_width).cast::<[f32; LANES]>();
            line.iter_mut().zip(sum).for_each(|(c, s)| *c += s);
        }
    }
}

#[cfg(target_arch = "x86_64")]
use x86::transpose8;

mod kernel;
#[cfg(target_arch = "x86_64")]
mod x86;

#[cfg(test)]
mod tests {
    use super::*;

    /// Every kernel of every instruction set that this processor has computes the promised chain, for both orders of A.
    #[test]
    fn kernels_add_one_chain_to_each_element() {
        let mut levels = vec![Level::Portable];
        #[cfg(target_arch = "x86_64")]
        {
            if level() != Level::Portable {
                levels.push(Level::Avx2);
            }
            if level() == Level::Avx512 {
                levels.push(Level::Avx512);
            }
        }
        let (k, value) = (37, |i: usize| ((i * 7919) % 1013) as f32 / 1013.0 - 0.4);
        for at in levels {
            for n in [16, 32, 64] {
                let (columns, table) = kernels(at, n);
                for (m, kernel) in table.iter().enumerate().map(|(i, kernel)| (i + 1, kernel)) {
                    for (row, step) in [(k, 1), (1, m)] {
                        let a: Vec<f32> = (0..m * k).map(value).collect();
                        let b: Vec<f32> = (0..k * columns).map(|i| value(i + 17)).collect();
                        let start: Vec<f32> = (0..m * columns).map(|i| value(i + 5)).collect();
                        let mut c = start.clone();
                        // SAFETY: the sizes are those of the three matrices, and the processor has the level.
                        unsafe { kernel(k, a.as_ptr(), row, step, b.as_ptr(), columns, c.as_mut_ptr(), columns) };
                        for i in 0..m * columns {
                            let chain = (0..k).fold(0.0f32, |sum, p| {
                                let (x, y) = (a[i / columns * row + p * step], b[p * columns + i % columns]);
                                if at == Level::Portable { sum + x * y } else { x.mul_add(y, sum) }
                            });
                            assert_eq!(
                                c[i].to_bits(),
                                (start[i] + chain).to_bits(),
                                "{m} rows of {columns} columns, element {i}"
                            );
                        }
                    }
                }
            }
        }
    }
}
