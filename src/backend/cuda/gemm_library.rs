//! Matrix products by cuBLASLt: caches descriptors by shape, times algorithms once per class of shapes, and keeps the
//! choices in a file, so that a resumed run computes the same bits.
//!
//! The contract of all `unsafe` here: `Plan` makes and destroys the descriptors; the caller guarantees a current
//! context, a live stream, and addresses of live tensors as large as the `Gemm` says (`Device`'s contract).

use super::device::{Device, Gemm, Matrix};
use crate::error::{Error, Result};
use crate::files::write_whole;
use crate::tensor::{DType, DeviceMemory};
use cudarc::cublaslt::{result, sys};
use cudarc::driver::sys::CUstream;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap};
use std::ffi::c_void;
use std::mem::MaybeUninit;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Bytes of workspace that an algorithm may use: what NVIDIA advises for Hopper.
const WORKSPACE: usize = 32 << 20;
/// Algorithms asked for, and runs of each when they are timed.
const CANDIDATES: usize = 8;
const RUNS: usize = 3;
/// The most shapes whose descriptors are kept; when there are more, all are dropped and made again. A step of ragged
/// batches has some twenty new shapes.
const MOST_PLANS: usize = 4096;
/// Permitted ways to add up the splits of K (CUBLASLT_REDUCTION_SCHEME): COMPUTE_TYPE alone. INPLACE adds in an order
/// that is not fixed; OUTPUT_TYPE rounds partial sums to bf16.
const REDUCTIONS: u32 = 2;
/// Version of the rule by which algorithms are chosen (`Key::class`, `REDUCTIONS`). Choices by another rule are made
/// again.
const RULE: u32 = 1;

/// The library's handle and its knowledge of each shape.
pub(super) struct GemmLibrary {
    handle: sys::cublasLtHandle_t,
    workspace: Option<Arc<dyn DeviceMemory>>,
    plans: HashMap<Key, Option<Plan>>,
    choices: Choices,
    /// Whether there are choices that the file does not have.
    has_new: bool,
    file: Option<PathBuf>,
    is_fixed: bool,
}

// SAFETY: the handle may be used from any thread, one at a time; the owner holds a mutex around this.
unsafe impl Send for GemmLibrary {}

/// Everything that an algorithm's validity and speed depend on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Key {
    extents: [usize; 3],
    strides: [usize; 3],
    dtypes: [DType; 3],
    alignments: [u32; 3],
    is_transposed: [bool; 2],
    accumulates: bool,
}

/// Descriptors and the algorithm for one key.
struct Plan {
    operation: sys::cublasLtMatmulDesc_t,
    layouts: [sys::cublasLtMatrixLayout_t; 3],
    algorithm: sys::cublasLtMatmulAlgo_t,
}

/// The algorithms chosen so far, by class in words; each is the library's opaque 64 bytes as eight words.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Choices {
    /// Version of the library; choices hold for one version only.
    version: usize,
    /// Version of the rule (`RULE`); choices hold for one only.
    #[serde(default)]
    rule: u32,
    algorithms: BTreeMap<String, [u64; 8]>,
}

impl Choices {
    /// Reads the choices in the file; `None` when there is no file.
    fn read(path: &Path) -> Result<Option<Self>> {
        if !path.exists() {
            return Ok(None);
        }
        let text = std::fs::read(path).map_err(|e| Error::io("reading", path, &e))?;
        let read = serde_json::from_slice(&text);
        read.map(Some).map_err(|e| Error::content(format!("{}: {e}; remove the file to time again", path.display())))
    }

    /// True when both were made by one version under one rule.
    fn agrees(&self, other: &Self) -> bool {
        (self.version, self.rule) == (other.version, other.rule)
    }
}

fn failed(doing: &str, gemm: &Gemm, error: result::CublasError) -> Error {
    Error::system(format!("cuBLASLt, {doing} ({} x {} x {}): {:?}", gemm.m, gemm.n, gemm.k, error.0))
}

impl Key {
    fn of(gemm: &Gemm) -> Self {
        // The largest power of two up to 256 that divides the address and the bytes of a row.
        let alignment = |m: Matrix| 1 << (m.address | (m.stride * m.dtype.size()) as u64 | 256).trailing_zeros();
        let all = [gemm.a, gemm.b, gemm.c];
        Self {
            extents: [gemm.m, gemm.n, gemm.k],
            strides: all.map(|m| m.stride),
            dtypes: all.map(|m| m.dtype),
            alignments: all.map(alignment),
            is_transposed: [gemm.transpose_a, gemm.transpose_b],
            accumulates: gemm.beta != 0.0,
        }
    }

    /// Returns the class of the key, for which one algorithm is chosen: the key with a rounded number of tokens, which
    /// differs from batch to batch. Tokens are the rows of c or, where `a` is transposed, the dimension that is summed
    /// over.
    fn class(mut self) -> Self {
        let tokens = &mut self.extents[if self.is_transposed[0] { 2 } else { 0 }];
        *tokens = match *tokens {
            // With few tokens (decoding) memory is the limit, and another tile is best.
            0..=16 => 16,
            17..=64 => 64,
            65..=4096 => tokens.next_multiple_of(256),
            _ => tokens.next_multiple_of(1024),
        };
        self
    }
}

impl GemmLibrary {
    /// Opens the library. It reads choices from `file` when it exists; `keep` writes them. With `is_fixed` nothing is
    /// timed, read or kept: the library's first algorithm for each shape is taken.
    pub fn open(file: Option<PathBuf>, is_fixed: bool) -> Result<Self> {
        let handle = result::create_handle()
            .map_err(|e| Error::system(format!("opening cuBLASLt: {:?}; the GPU may be out of memory", e.0)))?;
        // SAFETY: it takes no arguments.
        let version = unsafe { sys::cublasLtGetVersion() };
        let file = file.filter(|_| !is_fixed);
        let fresh = Choices { version, rule: RULE, algorithms: BTreeMap::new() };
        let choices = match &file {
            Some(path) => Choices::read(path)?.filter(|read| read.agrees(&fresh)).unwrap_or(fresh),
            None => fresh,
        };
        Ok(Self { handle, workspace: None, plans: HashMap::new(), choices, has_new: false, file, is_fixed })
    }

    /// Writes new choices to their file, together with those that another program has written there since.
    pub fn keep(&mut self) -> Result<()> {
        let Some(path) = self.file.as_ref().filter(|_| self.has_new) else { return Ok(()) };
        if let Some(theirs) = Choices::read(path)?.filter(|theirs| theirs.agrees(&self.choices)) {
            for (class, algorithm) in theirs.algorithms {
                self.choices.algorithms.entry(class).or_insert(algorithm);
            }
        }
        let text = serde_json::to_vec_pretty(&self.choices).map_err(|e| Error::system(format!("GEMM choices: {e}")))?;
        write_whole(path, &text)?;
        self.has_new = false;
        Ok(())
    }

    /// Computes `gemm` on the stream; returns false when the library has no algorithm for it. Nothing is timed during a
    /// recording.
    pub fn run(&mut self, device: &dyn Device, stream: CUstream, gemm: &Gemm, is_recording: bool) -> Result<bool> {
        if self.workspace.is_none() {
            self.workspace = Some(device.alloc(WORKSPACE)?);
        }
        let key = Key::of(gemm);
        if !self.plans.contains_key(&key) {
            if self.plans.len() >= MOST_PLANS {
                self.plans.clear();
            }
            let plan = self.plan(device, stream, gemm, &key, is_recording)?;
            self.plans.insert(key, plan);
        }
        match self.plans.get(&key) {
            Some(Some(plan)) => {
                self.matmul(stream, gemm, plan, &plan.algorithm, gemm.c.address, gemm.beta)?;
                Ok(true)
            }
            _ => Ok(false),
        }
    }

    /// Launches the product. Row-major c = a b is column-major c^T = b^T a^T, so the library's first operand is `b`.
    fn matmul(
        &self,
        stream: CUstream,
        gemm: &Gemm,
        plan: &Plan,
        algorithm: &sys::cublasLtMatmulAlgo_t,
        c: u64,
        beta: f32,
    ) -> Result<()> {
        let workspace = self.workspace.as_ref().map_or(0, |w| w.address());
        let [a, b, out] = plan.layouts;
        let pointer = |address: u64| address as *const c_void;
        // SAFETY: see the contract above; alpha and beta are read before the call returns (host pointer mode).
        unsafe {
            result::matmul(
                self.handle,
                plan.operation,
                (&gemm.alpha as *const f32).cast(),
                (&beta as *const f32).cast(),
                pointer(gemm.b.address),
                b,
                pointer(gemm.a.address),
                a,
                pointer(c),
                out,
                c as *mut c_void,
                out,
                algorithm,
                workspace as *mut c_void,
                WORKSPACE,
                stream.cast(),
            )
        }
        .map_err(|e| failed("multiplying", gemm, e))
    }

    /// Makes the descriptors and chooses the algorithm; `None` when the library has none.
    fn plan(
        &mut self,
        device: &dyn Device,
        stream: CUstream,
        gemm: &Gemm,
        key: &Key,
        is_recording: bool,
    ) -> Result<Option<Plan>> {
        let fail = |e| failed("describing", gemm, e);
        let single = sys::cudaDataType_t::CUDA_R_32F;
        let operation =
            result::create_matmul_desc(sys::cublasComputeType_t::CUBLAS_COMPUTE_32F, single).map_err(fail)?;
        let stored = |rows, columns, is_transposed| if is_transposed { (columns, rows) } else { (rows, columns) };
        let layout = |m: Matrix, (rows, columns): (usize, usize)| {
            let dtype = if m.dtype == DType::F32 { single } else { sys::cudaDataType_t::CUDA_R_16BF };
            // Row-major (rows, columns) is column-major (columns, rows).
            result::create_matrix_layout(dtype, columns as u64, rows as u64, m.stride as i64).map_err(fail)
        };
        let layouts = [
            layout(gemm.a, stored(gemm.m, gemm.k, gemm.transpose_a))?,
            layout(gemm.b, stored(gemm.k, gemm.n, gemm.transpose_b))?,
            layout(gemm.c, (gemm.m, gemm.n))?,
        ];
        let mut plan = Plan { operation, layouts, algorithm: sys::cublasLtMatmulAlgo_t { data: [0; 8] } };
        use sys::cublasLtMatmulDescAttributes_t::{CUBLASLT_MATMUL_DESC_TRANSA, CUBLASLT_MATMUL_DESC_TRANSB};
        let sides = [(CUBLASLT_MATMUL_DESC_TRANSA, gemm.transpose_b), (CUBLASLT_MATMUL_DESC_TRANSB, gemm.transpose_a)];
        for (attribute, is_transposed) in sides {
            let value = i32::from(is_transposed); // CUBLAS_OP_N = 0, CUBLAS_OP_T = 1
            // SAFETY: the descriptor is live; the value has the attribute's size.
            unsafe { result::set_matmul_desc_attribute(operation, attribute, (&value as *const i32).cast(), 4) }
                .map_err(fail)?;
        }
        let chosen = self.choose(device, stream, gemm, &plan, key, is_recording)?;
        Ok(chosen.map(|algorithm| {
            plan.algorithm = algorithm;
            plan
        }))
    }

    /// Chooses the algorithm: that of the shape's class if it can do the exact shape, else the library's first one for
    /// the shape; for a new class, the fastest of several. `None` when the library has none.
    fn choose(
        &mut self,
        device: &dyn Device,
        stream: CUstream,
        gemm: &Gemm,
        plan: &Plan,
        key: &Key,
        is_recording: bool,
    ) -> Result<Option<sys::cublasLtMatmulAlgo_t>> {
        let class = format!("{:?}", key.class());
        let known = self.choices.algorithms.get(&class).map(|&data| sys::cublasLtMatmulAlgo_t { data });
        if let Some(algorithm) = known.filter(|algorithm| !self.is_fixed && self.can_do(plan, algorithm)) {
            return Ok(Some(algorithm));
        }
        let candidates = self.candidates(gemm, plan, key)?;
        let Some(&first) = candidates.first() else { return Ok(None) };
        if self.is_fixed || known.is_some() {
            return Ok(Some(first));
        }
        let chosen = match is_recording || candidates.len() == 1 {
            true => first,
            false => self.fastest(device, stream, gemm, plan, &candidates)?,
        };
        self.choices.algorithms.insert(class, chosen.data);
        self.has_new = true;
        Ok(Some(chosen))
    }

    /// Whether an algorithm chosen for another shape can do the plan's, within the workspace.
    fn can_do(&self, plan: &Plan, algorithm: &sys::cublasLtMatmulAlgo_t) -> bool {
        let ([a, b, c], mut found) = (plan.layouts, MaybeUninit::<sys::cublasLtMatmulHeuristicResult_t>::zeroed());
        // SAFETY: descriptors, layouts and handle are live; the library writes one result, for which zeros are a valid
        // value too.
        unsafe {
            let result = found.as_mut_ptr();
            let status = sys::cublasLtMatmulAlgoCheck(self.handle, plan.operation, b, a, c, c, algorithm, result);
            status == sys::cublasStatus_t::CUBLAS_STATUS_SUCCESS && (*result).workspaceSize <= WORKSPACE
        }
    }

    /// Lists the algorithms that the library would try, best guess first.
    fn candidates(&self, gemm: &Gemm, plan: &Plan, key: &Key) -> Result<Vec<sys::cublasLtMatmulAlgo_t>> {
        let fail = |e| failed("looking for an algorithm", gemm, e);
        let preference = result::create_matmul_pref().map_err(fail)?;
        use sys::cublasLtMatmulPreferenceAttributes_t::*;
        let [a, b, c] = key.alignments;
        let numbers = [
            (CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, REDUCTIONS),
            (CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, b),
            (CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, a),
            (CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, c),
            (CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, c),
        ];
        let [a_layout, b_layout, c_layout] = plan.layouts;
        let mut found = Vec::with_capacity(CANDIDATES);
        let mut count = 0;
        // SAFETY: the preference, layouts and descriptor are live; values have the attributes' sizes; the library
        // writes `count` results into room for CANDIDATES.
        let status = unsafe {
            let bytes = WORKSPACE;
            let attribute = CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES;
            result::set_matmul_pref_attribute(
                preference,
                attribute,
                (&bytes as *const usize).cast(),
                size_of::<usize>(),
            )
            .map_err(fail)?;
            for (attribute, value) in numbers {
                result::set_matmul_pref_attribute(preference, attribute, (&value as *const u32).cast(), 4)
                    .map_err(fail)?;
            }
            let status = sys::cublasLtMatmulAlgoGetHeuristic(
                self.handle,
                plan.operation,
                b_layout,
                a_layout,
                c_layout,
                c_layout,
                preference,
                CANDIDATES as i32,
                found.as_mut_ptr(),
                &mut count,
            );
            result::destroy_matmul_pref(preference).map_err(fail)?;
            if status == sys::cublasStatus_t::CUBLAS_STATUS_SUCCESS {
                found.set_len(count.clamp(0, CANDIDATES as i32) as usize);
            }
            status
        };
        match status {
            sys::cublasStatus_t::CUBLAS_STATUS_SUCCESS => {}
            sys::cublasStatus_t::CUBLAS_STATUS_NOT_SUPPORTED => return Ok(vec![]),
            other => return Err(fail(result::CublasError(other))),
        }
        let good = |h: &sys::cublasLtMatmulHeuristicResult_t| h.state == sys::cublasStatus_t::CUBLAS_STATUS_SUCCESS;
        Ok(found.iter().filter(|h| good(h)).map(|h| h.algo).collect())
    }

    /// Returns the candidate that is fastest when it writes to a copy of c's size; the first one when there is no
    /// memory for the copy.
    fn fastest(
        &self,
        device: &dyn Device,
        stream: CUstream,
        gemm: &Gemm,
        plan: &Plan,
        candidates: &[sys::cublasLtMatmulAlgo_t],
    ) -> Result<sys::cublasLtMatmulAlgo_t> {
        let bytes = ((gemm.m - 1) * gemm.c.stride + gemm.n) * gemm.c.dtype.size();
        // The copy must be aligned like c; arena memory is aligned at least as well.
        let Ok(copy) = device.alloc(bytes) else { return Ok(candidates[0]) };
        let mut best = (f64::INFINITY, candidates[0]);
        for algorithm in candidates {
            let work = || self.matmul(stream, gemm, plan, algorithm, copy.address(), gemm.beta);
            if work().is_err() {
                continue; // the heuristic offered what the device then refused
            }
            let seconds = device.elapsed(&mut || (0..RUNS).try_for_each(|_| work()))?;
            if seconds < best.0 {
                best = (seconds, *algorithm);
            }
        }
        Ok(best.1)
    }
}

impl Drop for Plan {
    fn drop(&mut self) {
        // SAFETY: made by `plan`, destroyed once. Errors cannot be reported to anyone.
        unsafe {
            let _ = result::destroy_matmul_desc(self.operation);
            for layout in self.layouts {
                let _ = result::destroy_matrix_layout(layout);
            }
        }
    }
}
