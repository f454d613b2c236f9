//! A tensor: a buffer, its shape and its type. The buffer is owned on the host, a range of a memory map, or memory of a
//! device, which only its backend can read. Arithmetic is left to the backend.

use crate::error::{Error, Result};
use half::{bf16, f16};
use std::sync::Arc;

/// The type of a tensor's elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DType {
    /// 32-bit float: activations and adapters on the CPU.
    F32,
    /// 64-bit float: the oracle's, for gradient checks.
    F64,
    /// IEEE half: storage only.
    F16,
    /// Brain float: storage on the CPU, activations on the GPU.
    BF16,
    /// 32-bit integer: ids, positions, rows.
    I32,
}

impl DType {
    /// Bytes of one element.
    pub fn size(self) -> usize {
        match self {
            DType::F64 => 8,
            DType::F32 | DType::I32 => 4,
            DType::F16 | DType::BF16 => 2,
        }
    }
}

/// An element type; holding `T: Element` proves that `T` is the element of `T::DTYPE`.
pub trait Element: bytemuck::Pod + Send + Sync {
    /// The tensor type of these elements.
    const DTYPE: DType;
}
impl Element for f32 {
    const DTYPE: DType = DType::F32;
}
impl Element for f64 {
    const DTYPE: DType = DType::F64;
}
impl Element for f16 {
    const DTYPE: DType = DType::F16;
}
impl Element for bf16 {
    const DTYPE: DType = DType::BF16;
}
impl Element for i32 {
    const DTYPE: DType = DType::I32;
}

/// Rounds `x` once to the nearest f16, ties to even. (`f16::from_f64` drops the low half of `x` before it rounds, so a
/// value just above a tie goes down.)
pub fn to_f16(x: f64) -> f16 {
    f16::from_f32(to_odd(x))
}

/// Rounds `x` once to the nearest bf16, ties to even. (`bf16::from_f64` has the same fault as `f16::from_f64`.)
pub fn to_bf16(x: f64) -> bf16 {
    bf16::from_f32(to_odd(x))
}

/// Converts `x` to an f32 that rounds to fewer bits as `x` itself does: where inexact, the neighbour whose last bit is
/// set, which is never a tie (Boldo and Melquiond, "Emulation of FMA and correctly rounded sums: proved algorithms
/// using rounding to odd").
fn to_odd(x: f64) -> f32 {
    let near = x as f32;
    let wide = f64::from(near);
    if wide == x || near.is_nan() || near.to_bits() & 1 == 1 {
        return near;
    }
    f32::from_bits(if x.abs() > wide.abs() { near.to_bits() + 1 } else { near.to_bits() - 1 })
}

/// Bytes (of a memory-mapped file) that outlive every tensor on them.
pub trait Bytes: Send + Sync {
    /// All the bytes.
    fn bytes(&self) -> &[u8];
}

/// Memory of a device, freed when the last tensor on it is gone. Only its device can use the address.
pub trait DeviceMemory: Send + Sync {
    /// Address of the first byte.
    fn address(&self) -> u64;
    /// Copies the first `bytes.len()` bytes to the host, after all work given to the device so far.
    fn download(&self, bytes: &mut [u8]) -> Result<()>;
}

enum Storage {
    /// 64-bit words, so that every element type is aligned.
    Owned(Vec<u64>),
    Mapped {
        source: Arc<dyn Bytes>,
        start: usize,
    },
    Device(Arc<dyn DeviceMemory>),
}

/// A dense row-major tensor.
pub struct Tensor {
    shape: Vec<usize>,
    dtype: DType,
    storage: Storage,
    /// Bytes of the storage.
    capacity: usize,
}

impl std::fmt::Debug for Tensor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}{:?}", self.dtype, self.shape)
    }
}

impl Default for Tensor {
    /// A tensor without elements.
    fn default() -> Self {
        Self::zeros(&[0], DType::F32)
    }
}

impl Tensor {
    /// Zeros on the host.
    pub fn zeros(shape: &[usize], dtype: DType) -> Self {
        let bytes = shape.iter().product::<usize>() * dtype.size();
        Self { shape: shape.to_vec(), dtype, storage: Storage::Owned(vec![0; bytes.div_ceil(8)]), capacity: bytes }
    }

    /// A copy of `values` in `shape`; the element counts must agree.
    pub fn from_slice<T: Element>(shape: &[usize], values: &[T]) -> Self {
        let mut tensor = Self::zeros(shape, T::DTYPE);
        tensor.slice_mut::<T>().copy_from_slice(values);
        tensor
    }

    /// A copy of little-endian bytes. Error: their number is not what `shape` needs.
    pub fn from_bytes(shape: &[usize], dtype: DType, bytes: &[u8]) -> Result<Self> {
        let mut tensor = Self::zeros(shape, dtype);
        let n = tensor.len() * dtype.size();
        if bytes.len() != n {
            return Err(Error::content(format!("{} bytes for a {tensor:?}, which has {n}", bytes.len())));
        }
        if let Storage::Owned(words) = &mut tensor.storage {
            bytemuck::cast_slice_mut(words)[..n].copy_from_slice(bytes);
        }
        Ok(tensor)
    }

    /// A view of mapped bytes from `start`. Errors: out of range, or not aligned for `dtype` (then copy it).
    pub fn mapped(shape: &[usize], dtype: DType, source: Arc<dyn Bytes>, start: usize) -> Result<Self> {
        let length = shape.iter().try_fold(dtype.size(), |a, &b| a.checked_mul(b));
        let end = length.and_then(|n| start.checked_add(n));
        let bytes = source.bytes();
        match end {
            Some(end) if end <= bytes.len() => {
                if !(bytes.as_ptr() as usize + start).is_multiple_of(dtype.size()) {
                    return Err(Error::content(format!("mapped tensor at byte {start} is not aligned for {dtype:?}")));
                }
                let storage = Storage::Mapped { source, start };
                Ok(Self { shape: shape.to_vec(), dtype, storage, capacity: end - start })
            }
            _ => Err(Error::content(format!("tensor {shape:?} at byte {start} lies outside its file"))),
        }
    }

    /// A tensor on memory of a device, which must have the bytes that `shape` needs.
    pub fn on_device(shape: &[usize], dtype: DType, memory: Arc<dyn DeviceMemory>) -> Self {
        let capacity = shape.iter().product::<usize>() * dtype.size();
        Self { shape: shape.to_vec(), dtype, storage: Storage::Device(memory), capacity }
    }

    /// Bytes of the memory that the tensor was made with; a tensor refitted to fewer elements keeps them.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Changes the shape if the tensor has this type, its memory has room and it is not mapped (mapped tensors are
    /// frozen). The contents are then undefined. Else returns false and changes nothing.
    pub fn refit(&mut self, shape: &[usize], dtype: DType) -> bool {
        let has_room = shape.iter().product::<usize>() * dtype.size() <= self.capacity;
        let fits = has_room && dtype == self.dtype && !self.is_mapped();
        if fits {
            self.shape = shape.to_vec();
        }
        fits
    }

    /// The address of the first element, when the tensor lies on a device.
    pub fn device_address(&self) -> Option<u64> {
        match &self.storage {
            Storage::Device(memory) => Some(memory.address()),
            _ => None,
        }
    }

    /// A copy on the host of a tensor that lies on a device; `None` when it is on the host already.
    pub fn host_copy(&self) -> Result<Option<Self>> {
        let Storage::Device(memory) = &self.storage else { return Ok(None) };
        let mut copy = Self::zeros(&self.shape, self.dtype);
        let n = copy.len() * copy.dtype.size();
        if let Storage::Owned(words) = &mut copy.storage {
            memory.download(&mut bytemuck::cast_slice_mut(words)[..n])?;
        }
        Ok(Some(copy))
    }

    /// Counts the numbers that are NaN or infinite. The tensor must be on the host.
    pub fn not_finite(&self) -> usize {
        match self.dtype {
            DType::F32 => self.slice::<f32>().iter().filter(|x| !x.is_finite()).count(),
            DType::F64 => self.slice::<f64>().iter().filter(|x| !x.is_finite()).count(),
            DType::F16 => self.slice::<half::f16>().iter().filter(|x| !x.is_finite()).count(),
            DType::BF16 => self.slice::<half::bf16>().iter().filter(|x| !x.is_finite()).count(),
            DType::I32 => 0,
        }
    }

    /// The extents, outermost first.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The number of rows: the first extent.
    pub fn rows(&self) -> usize {
        self.shape.first().copied().unwrap_or(1)
    }

    /// Elements of one row: the product of all extents but the first.
    pub fn columns(&self) -> usize {
        self.shape.iter().skip(1).product()
    }

    /// The number of elements.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// True when there is no element.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// True when the elements lie in a memory map.
    pub fn is_mapped(&self) -> bool {
        matches!(self.storage, Storage::Mapped { .. })
    }

    /// The elements. Panics when `T` is not the tensor's type or they lie on a device; ops check both before they run.
    pub fn slice<T: Element>(&self) -> &[T] {
        assert_eq!(self.dtype, T::DTYPE, "a {:?} tensor was read as {:?}", self.dtype, T::DTYPE);
        match &self.storage {
            Storage::Owned(words) => &bytemuck::cast_slice(words)[..self.len()],
            Storage::Mapped { source, start } => {
                let end = start + self.len() * self.dtype.size();
                bytemuck::cast_slice(&source.bytes()[*start..end])
            }
            Storage::Device(_) => panic!("{self:?} lies on a device; its backend reads it"),
        }
    }

    /// The elements, for writing. Panics when `T` is not the tensor's type, or the tensor is mapped (mapped tensors are
    /// frozen) or lies on a device.
    pub fn slice_mut<T: Element>(&mut self) -> &mut [T] {
        assert_eq!(self.dtype, T::DTYPE, "a {:?} tensor was written as {:?}", self.dtype, T::DTYPE);
        let n = self.len();
        match &mut self.storage {
            Storage::Owned(words) => &mut bytemuck::cast_slice_mut(words)[..n],
            Storage::Mapped { .. } => panic!("a mapped tensor is frozen"),
            Storage::Device(_) => panic!("the tensor lies on a device; its backend writes it"),
        }
    }

    /// The little-endian bytes of the elements, as safetensors stores them. Panics when they lie on a device.
    pub fn as_bytes(&self) -> &[u8] {
        let n = self.len() * self.dtype.size();
        match &self.storage {
            Storage::Owned(words) => &bytemuck::cast_slice(words)[..n],
            Storage::Mapped { source, start } => &source.bytes()[*start..start + n],
            Storage::Device(_) => panic!("{self:?} lies on a device; its backend reads it"),
        }
    }

    /// Changes the shape. Panics when the new shape has another number of elements.
    pub fn reshape(mut self, shape: &[usize]) -> Self {
        assert_eq!(self.len(), shape.iter().product::<usize>(), "reshape {:?} to {shape:?}", self.shape);
        self.shape = shape.to_vec();
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Philox;

    /// Checks `round` on all f16s (or bf16s) except NaNs, sorted, as f64: a value between two neighbours goes to the
    /// nearer one, a tie to the even one.
    fn check(all: &[(f64, u16)], round: impl Fn(f64) -> u16) {
        let mut rng = Philox::new(1, 0);
        for pair in all.windows(2) {
            let ((low, below), (high, above)) = (pair[0], pair[1]);
            let middle = 0.5 * (low + high);
            let even = if below & 1 == 0 { below } else { above };
            // Above and below the tie by the last bit of an f64 and of an f32, and by some share of the way.
            let (bit, wide) = (middle * f64::EPSILON, middle * f64::from(f32::EPSILON));
            let share = rng.uniform() * (high - middle);
            for off in [bit, wide, share].into_iter().filter(|off| middle + off < high && middle + off > middle) {
                assert_eq!(round(middle + off), above, "{middle:e} + {off:e}");
                assert_eq!(round(-middle - off), above | 0x8000, "-{middle:e} - {off:e}");
                assert_eq!(round(middle - off), below, "{middle:e} - {off:e}");
            }
            assert_eq!((round(low), round(middle), round(high)), (below, even, above), "{low:e} to {high:e}");
        }
    }

    #[test]
    fn a_tensor_is_fitted_within_the_memory_it_was_made_with() {
        let mut tensor = Tensor::from_slice(&[2, 3], &[1.0f32, 2.0, 3.0, 4.0, 5.0, 6.0]);
        assert!(tensor.refit(&[4], DType::F32));
        assert_eq!((tensor.slice::<f32>(), tensor.capacity()), (&[1.0, 2.0, 3.0, 4.0][..], 24));
        assert!(tensor.refit(&[3, 2], DType::F32) && tensor.len() == 6);
        assert!(!tensor.refit(&[7], DType::F32) && !tensor.refit(&[6], DType::I32));
        assert_eq!(tensor.shape(), [3, 2]);
    }

    #[test]
    fn narrow_floats_are_rounded_once_to_nearest_even() {
        let f16s: Vec<(f64, u16)> = (0..0x7c00).map(|bits| (f16::from_bits(bits).to_f64(), bits)).collect();
        let bf16s: Vec<(f64, u16)> = (0..0x7f80).map(|bits| (bf16::from_bits(bits).to_f64(), bits)).collect();
        check(&f16s, |x| to_f16(x).to_bits());
        check(&bf16s, |x| to_bf16(x).to_bits());
        assert_eq!((to_f16(65_520.0), to_f16(65_519.9)), (f16::INFINITY, f16::MAX));
        assert_eq!((to_bf16(f64::MAX), to_bf16(f64::NEG_INFINITY)), (bf16::INFINITY, bf16::NEG_INFINITY));
        assert!(to_f16(f64::NAN).is_nan() && to_bf16(f64::NAN).is_nan());
    }
}
