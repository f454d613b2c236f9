//! A buffer, its shape and its type. No arithmetic: that is the backend's. Owned on the host, a range of a memory map, or memory
//! of a device, which only its backend can look into.

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

/// Bytes that outlive every tensor that looks at them (a memory-mapped file).
pub trait Bytes: Send + Sync {
    /// All the bytes.
    fn bytes(&self) -> &[u8];
}

/// Memory of a device, freed when the last tensor on it is gone. The address means something to its device only.
pub trait DeviceMemory: Send + Sync {
    /// Of the first byte.
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
}

impl std::fmt::Debug for Tensor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}{:?}", self.dtype, self.shape)
    }
}

impl Default for Tensor {
    /// No elements.
    fn default() -> Self {
        Self::zeros(&[0], DType::F32)
    }
}

impl Tensor {
    /// Zeros on the host.
    pub fn zeros(shape: &[usize], dtype: DType) -> Self {
        let bytes = shape.iter().product::<usize>() * dtype.size();
        Self { shape: shape.to_vec(), dtype, storage: Storage::Owned(vec![0; bytes.div_ceil(8)]) }
    }

    /// A copy of `values` in `shape`; the element counts must agree.
    pub fn from_slice<T: Element>(shape: &[usize], values: &[T]) -> Self {
        let mut tensor = Self::zeros(shape, T::DTYPE);
        tensor.slice_mut::<T>().copy_from_slice(values);
        tensor
    }

    /// A copy of little-endian bytes. Error: not as many as `shape` needs.
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

    /// A view of mapped bytes from `start`. Errors: out of range, or not aligned for `dtype` (copy it then).
    pub fn mapped(shape: &[usize], dtype: DType, source: Arc<dyn Bytes>, start: usize) -> Result<Self> {
        let length = shape.iter().try_fold(dtype.size(), |a, &b| a.checked_mul(b));
        let end = length.and_then(|n| start.checked_add(n));
        let bytes = source.bytes();
        match end {
            Some(end) if end <= bytes.len() => {
                if !(bytes.as_ptr() as usize + start).is_multiple_of(dtype.size()) {
                    return Err(Error::content(format!("mapped tensor at byte {start} is not aligned for {dtype:?}")));
                }
                Ok(Self { shape: shape.to_vec(), dtype, storage: Storage::Mapped { source, start } })
            }
            _ => Err(Error::content(format!("tensor {shape:?} at byte {start} lies outside its file"))),
        }
    }

    /// A tensor on memory of a device.
    pub fn on_device(shape: &[usize], dtype: DType, memory: Arc<dyn DeviceMemory>) -> Self {
        Self { shape: shape.to_vec(), dtype, storage: Storage::Device(memory) }
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

    /// The elements. Panics when `T` is not the tensor's type or they lie on a device: ops check that at their door.
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

    /// The elements, to be written. Panics when `T` is not the tensor's type, or the tensor is mapped (mapped tensors are frozen) or
    /// lies on a device.
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

    /// The same elements under another shape of as many elements.
    pub fn reshape(mut self, shape: &[usize]) -> Self {
        assert_eq!(self.len(), shape.iter().product::<usize>(), "reshape {:?} to {shape:?}", self.shape);
        self.shape = shape.to_vec();
        self
    }
}
