//! Reads safetensors files, memory-mapped and validated on opening, and writes them whole. The only memory map of the
//! crate. Knows names, shapes and types; leaves the meaning of the tensors to others.

use crate::error::{Error, Result};
use crate::files::{self, regular};
use crate::tensor::{Bytes, DType, Tensor, to_bf16, to_f16};
use half::{bf16, f16};
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, Metadata, TensorInfo, View};
use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

/// Most dimensions that a tensor may have; no weight has as many.
const MAX_RANK: usize = 8;

/// Most bytes of a file name on Linux.
const MAX_NAME: usize = 255;

/// Start of a Git LFS pointer: the file that Git leaves in place of a large one that was not fetched.
const LFS_POINTER: &[u8] = b"version https://git-lfs";

/// A read-only map of a whole file.
struct FileMap(memmap2::Mmap);

impl Bytes for FileMap {
    fn bytes(&self) -> &[u8] {
        &self.0
    }
}

/// One file: its map and its validated header.
struct Shard {
    path: PathBuf,
    map: Arc<dyn Bytes>,
    /// Offset at which the tensors' bytes begin.
    data: usize,
    metadata: Metadata,
}

/// Tensors of a safetensors file or of a folder of shards, by name. Opening validates every header: lengths, offsets
/// and shapes must agree with the file, without gaps or overlaps. Tensors are read from the map when touched.
pub struct WeightMap {
    shards: Vec<Shard>,
    /// Index of each tensor's shard.
    places: BTreeMap<String, usize>,
    notes: Mutex<Vec<String>>,
    /// Names of the tensors that were asked for.
    read: Mutex<BTreeSet<String>>,
}

impl WeightMap {
    /// Opens `dir`/model.safetensors, or the shards named by `dir`/model.safetensors.index.json. The files must not be
    /// changed while the map or a tensor of it lives. Errors: neither is there, a malformed or truncated file, an index
    /// that does not match its shards.
    pub fn open(dir: &Path) -> Result<Self> {
        let single = dir.join("model.safetensors");
        let index = dir.join("model.safetensors.index.json");
        if single.exists() {
            Self::open_file(&single)
        } else if index.exists() {
            Self::open_index(dir, &index)
        } else {
            Err(Error::content(format!(
                "{}: no weights; expected model.safetensors or model.safetensors.index.json with its shards",
                dir.display()
            )))
        }
    }

    /// Opens one safetensors file.
    pub fn open_file(path: &Path) -> Result<Self> {
        let shard = Shard::open(path)?;
        let places = shard.metadata.offset_keys().into_iter().map(|name| (name, 0)).collect();
        Ok(Self { shards: vec![shard], places, notes: Mutex::default(), read: Mutex::default() })
    }

    fn open_index(dir: &Path, index: &Path) -> Result<Self> {
        #[derive(serde::Deserialize)]
        struct Index {
            weight_map: BTreeMap<String, String>,
        }
        let text = regular::read_text(index, u64::MAX)?;
        let parsed: Index = serde_json::from_str(&text).map_err(|e| {
            Error::content(format!(
                "{}: {e}; expected {{\"weight_map\": {{\"tensor name\": \"model-00001-of-00002.safetensors\"}}}}",
                index.display()
            ))
        })?;
        if parsed.weight_map.is_empty() {
            return Err(Error::content(format!(
                "{}: weight_map is empty; expected the model's tensors",
                index.display()
            )));
        }
        let mut shards: Vec<Shard> = Vec::new();
        let mut by_file = HashMap::new();
        let mut places = BTreeMap::new();
        for (name, file) in parsed.weight_map {
            if Path::new(&file).file_name() != Some(file.as_ref()) || file.contains('\0') || file.len() > MAX_NAME {
                return Err(Error::content(format!(
                    "{}: {name}: the shard {file:?} must be a file name in the same folder",
                    index.display()
                )));
            }
            let place = match by_file.get(&file) {
                Some(&place) => place,
                None => {
                    let shard = Shard::open(&dir.join(&file))
                        .map_err(|e| e.context(format!("shard of {}", index.display())))?;
                    shards.push(shard);
                    by_file.insert(file, shards.len() - 1);
                    shards.len() - 1
                }
            };
            if shards[place].metadata.info(&name).is_none() {
                return Err(Error::content(format!(
                    "{}: tensor {name} is not in it, though {} says so",
                    shards[place].path.display(),
                    index.display()
                )));
            }
            places.insert(name, place);
        }
        Ok(Self { shards, places, notes: Mutex::default(), read: Mutex::default() })
    }

    /// The tensor `name`: in place if its bytes are aligned for its type, else copied and noted. Errors name the file:
    /// no such tensor, another shape, or a type other than f32, f16, bf16, f64 and i32.
    pub fn get(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        let tensor = self.get_any(name)?;
        if tensor.shape() == shape {
            return Ok(tensor);
        }
        Err(Error::content(format!(
            "{}: tensor {name} has shape {:?}, expected {shape:?}",
            self.shards[self.places[name]].path.display(),
            tensor.shape()
        )))
    }

    /// The tensor `name` in whatever shape it has; otherwise as `get`.
    pub fn get_any(&self, name: &str) -> Result<Tensor> {
        let Some(&place) = self.places.get(name) else {
            let files: Vec<_> = self.shards.iter().map(|s| s.path.display().to_string()).collect();
            let found: Vec<&str> = self.names().take(3).collect();
            let more = self.places.len().saturating_sub(found.len());
            return Err(Error::content(format!(
                "{}: no tensor {name}; it holds {} and {more} more",
                files.join(", "),
                found.join(", ")
            )));
        };
        self.read.lock().unwrap_or_else(PoisonError::into_inner).insert(name.to_string());
        let shard = &self.shards[place];
        let info = shard
            .metadata
            .info(name)
            .ok_or_else(|| Error::content(format!("{}: no tensor {name}", shard.path.display())))?;
        let fail = |what: String| Error::content(format!("{}: tensor {name} {what}", shard.path.display()));
        let dtype = from_stored(info.dtype)
            .ok_or_else(|| fail(format!("is of type {:?}; expected F32, F16 or BF16", info.dtype)))?;
        if info.shape.len() > MAX_RANK {
            return Err(fail(format!("has {} dimensions; expected at most {MAX_RANK}", info.shape.len())));
        }
        let start = shard.data + info.data_offsets.0;
        let bytes = &shard.map.bytes()[start..shard.data + info.data_offsets.1];
        if (bytes.as_ptr() as usize).is_multiple_of(dtype.size()) {
            return Tensor::mapped(&info.shape, dtype, Arc::clone(&shard.map), start).map_err(|e| e.context(name));
        }
        let note = format!("{}: tensor {name} is not aligned in the file and was copied", shard.path.display());
        self.notes.lock().unwrap_or_else(PoisonError::into_inner).push(note);
        Tensor::from_bytes(&info.shape, dtype, bytes)
    }

    /// True when the tensor `name` is there.
    pub fn contains(&self, name: &str) -> bool {
        self.places.contains_key(name)
    }

    /// All names, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.places.keys().map(String::as_str)
    }

    /// Names of tensors in the files that were not asked for so far, sorted, including those that an index leaves out.
    pub fn unread(&self) -> Vec<String> {
        let read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        let stored: BTreeSet<String> = self.shards.iter().flat_map(|shard| shard.metadata.offset_keys()).collect();
        stored.difference(&read).cloned().collect()
    }

    /// Float types of the tensors, each with the number of elements stored in it.
    pub fn dtypes(&self) -> Vec<(DType, usize)> {
        let mut counts: Vec<(DType, usize)> = vec![];
        for (name, &place) in &self.places {
            let Some(info) = self.shards[place].metadata.info(name) else { continue };
            let Some(dtype) = from_stored(info.dtype).filter(|&dtype| dtype != DType::I32) else { continue };
            let elements = (info.data_offsets.1 - info.data_offsets.0) / dtype.size();
            match counts.iter_mut().find(|(known, _)| *known == dtype) {
                Some((_, count)) => *count += elements,
                None => counts.push((dtype, elements)),
            }
        }
        counts
    }

    /// Notes for the user: the tensors that had to be copied so far.
    pub fn notes(&self) -> Vec<String> {
        self.notes.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Shard {
    fn open(path: &Path) -> Result<Self> {
        let file = regular::file(path)?;
        // SAFETY: the map is private and read-only. Its contract is that nobody truncates or rewrites the file while
        // the map lives. `WeightMap::open` passes this on to the user; this crate replaces files only by renaming,
        // which leaves the old inode alone.
        let map = unsafe { memmap2::Mmap::map(&file) }.map_err(|e| Error::io("mapping", path, &e))?;
        let (header, metadata) = SafeTensors::read_metadata(&map).map_err(|e| {
            let what = match map.starts_with(LFS_POINTER) {
                true => "a Git LFS pointer in its place (git lfs pull fetches it)".to_string(),
                false => culprit(&map).unwrap_or_else(|| e.to_string()),
            };
            Error::content(format!(
                "{}: not a whole safetensors file of {} bytes: {what}; download or write it again",
                path.display(),
                map.len()
            ))
        })?;
        Ok(Self { path: path.to_path_buf(), map: Arc::new(FileMap(map)), data: header + 8, metadata })
    }
}

/// Describes what is wrong with a file that `safetensors` refused, if its header can be read: the tensor, what was
/// found and what was expected.
fn culprit(bytes: &[u8]) -> Option<String> {
    let length = u64::from_le_bytes(bytes.get(..8)?.try_into().ok()?);
    let stop = usize::try_from(length).ok()?.checked_add(8)?;
    let header: BTreeMap<String, serde_json::Value> = serde_json::from_slice(bytes.get(8..stop)?).ok()?;
    let mut tensors = Vec::new();
    for (name, value) in header.into_iter().filter(|(name, _)| name != "__metadata__") {
        match serde_json::from_value::<TensorInfo>(value) {
            Ok(info) => tensors.push((info.data_offsets, name, info)),
            Err(e) => return Some(format!("tensor {name}: {e}")),
        }
    }
    tensors.sort_by(|a, b| (a.0, &a.1).cmp(&(b.0, &b.1)));
    let mut end = 0;
    for ((from, to), name, info) in tensors {
        let bits = info.shape.iter().try_fold(info.dtype.bitsize(), |a, &b| a.checked_mul(b));
        if from != end || to < from {
            return Some(format!("tensor {name} lies at bytes {from} to {to} of the data, expected a start at {end}"));
        }
        if bits != (to - from).checked_mul(8) {
            return Some(format!(
                "tensor {name}: {} bytes do not hold {:?} of {:?}",
                to - from,
                info.shape,
                info.dtype
            ));
        }
        end = to;
    }
    Some(format!("the header says {end} bytes of data, found {}", bytes.len() - stop))
}

/// Writes `tensors`, whose names must differ, to `path` as safetensors, whole or not at all, each in `dtype` (`None`:
/// in its own). The metadata is {"format": "pt"}, which transformers requires. Equal tensors give equal bytes.
pub fn save(path: &Path, tensors: &[(String, &Tensor)], dtype: Option<DType>) -> Result<()> {
    let entry = |(name, tensor): &(String, &Tensor)| Entry {
        name: name.clone(),
        shape: tensor.shape().to_vec(),
        dtype: dtype.unwrap_or(tensor.dtype()),
    };
    save_made(path, &tensors.iter().map(entry).collect::<Vec<_>>(), &|index| Ok(Given::Held(tensors[index].1)))
}

/// A tensor of a file to be written.
#[derive(Debug, Clone)]
pub struct Entry {
    /// Name, unlike any other in its file.
    pub name: String,
    /// Shape as it will be read back.
    pub shape: Vec<usize>,
    /// Type it will be stored in.
    pub dtype: DType,
}

/// The elements of an entry, in any float type.
pub enum Given<'a> {
    /// A tensor that is held elsewhere.
    Held(&'a Tensor),
    /// A tensor made for this file, dropped once it is written.
    Made(Tensor),
}

impl Given<'_> {
    /// The elements.
    pub fn tensor(&self) -> &Tensor {
        match self {
            Given::Held(tensor) => tensor,
            Given::Made(tensor) => tensor,
        }
    }
}

/// Same as `save`, but takes the tensor of entry `index` from `make(index)` when its turn comes: one is in memory at a
/// time.
pub fn save_made<'a>(path: &Path, entries: &[Entry], make: &dyn Fn(usize) -> Result<Given<'a>>) -> Result<()> {
    let failed = RefCell::new(None);
    let views = || {
        let stored = |(index, entry)| Stored { entry, index, make, failed: &failed };
        entries.iter().enumerate().map(move |pair| (&pair.1.name, stored(pair)))
    };
    let names: BTreeSet<&String> = entries.iter().map(|entry| &entry.name).collect();
    if names.len() != entries.len() {
        return Err(Error::system(format!("writing {}: two tensors have one name", path.display())));
    }
    let metadata = HashMap::from([("format".to_string(), "pt".to_string())]);
    files::publish(path, |temporary| {
        safetensors::serialize_to_file(views(), Some(metadata), temporary).map_err(|e| match e {
            safetensors::SafeTensorError::IoError(e) => Error::io("writing", path, &e),
            other => Error::system(format!("writing {}: {other}", path.display())),
        })?;
        if let Some(error) = failed.take() {
            return Err(Error::context(error, format!("writing {}", path.display())));
        }
        let mut header = [0; 8];
        let mut file = File::open(temporary).map_err(|e| Error::io("opening", temporary, &e))?;
        std::io::Read::read_exact(&mut file, &mut header).map_err(|e| Error::io("reading back", path, &e))?;
        Ok(8 + u64::from_le_bytes(header) + views().map(|(_, view)| view.data_len() as u64).sum::<u64>())
    })
}

/// A tensor as it will be in the file; made and converted while writing, one tensor at a time.
struct Stored<'w, 'a> {
    entry: &'w Entry,
    index: usize,
    make: &'w dyn Fn(usize) -> Result<Given<'a>>,
    /// Why a tensor could not be made. Kept here because the format's writer takes no errors while it writes.
    failed: &'w RefCell<Option<Error>>,
}

impl Stored<'_, '_> {
    fn bytes(&self) -> Result<Cow<'_, [u8]>> {
        let Entry { name, shape, dtype } = self.entry;
        let given = (self.make)(self.index)?;
        let tensor = given.tensor();
        if tensor.shape() != shape {
            return Err(Error::system(format!("tensor {name} has shape {:?}, expected {shape:?}", tensor.shape())));
        }
        let copy = tensor.host_copy()?;
        check_range(name, copy.as_ref().unwrap_or(tensor), *dtype)?;
        match (given, copy) {
            (Given::Held(tensor), None) if tensor.dtype() == *dtype => Ok(Cow::Borrowed(tensor.as_bytes())),
            (Given::Held(tensor), None) => Ok(Cow::Owned(converted(tensor, *dtype).as_bytes().to_vec())),
            (Given::Made(tensor), None) | (_, Some(tensor)) => {
                Ok(Cow::Owned(converted(&tensor, *dtype).as_bytes().to_vec()))
            }
        }
    }
}

/// Refuses to write a number that `dtype` cannot hold: it would become infinite.
fn check_range(name: &str, tensor: &Tensor, dtype: DType) -> Result<()> {
    if tensor.dtype() == dtype || !matches!(dtype, DType::F16 | DType::BF16 | DType::F32) {
        return Ok(());
    }
    let most = match dtype {
        DType::F16 => 65519.0, // still rounds to the greatest f16
        DType::BF16 => 3.396e38,
        _ => f64::from(f32::MAX),
    };
    let beyond = |x: f64| x.is_finite() && x.abs() > most;
    let found = match tensor.dtype() {
        DType::F32 => tensor.slice::<f32>().iter().map(|&x| f64::from(x)).find(|&x| beyond(x)),
        DType::F64 => tensor.slice::<f64>().iter().copied().find(|&x| beyond(x)),
        DType::BF16 => tensor.slice::<bf16>().iter().map(|&x| f64::from(f32::from(x))).find(|&x| beyond(x)),
        DType::F16 | DType::I32 => None,
    };
    match found {
        None => Ok(()),
        Some(x) => Err(Error::content(format!("tensor {name} holds {x:e}, which {dtype:?} cannot; write it in f32"))),
    }
}

impl View for Stored<'_, '_> {
    fn dtype(&self) -> Dtype {
        match self.entry.dtype {
            DType::F32 => Dtype::F32,
            DType::F64 => Dtype::F64,
            DType::F16 => Dtype::F16,
            DType::BF16 => Dtype::BF16,
            DType::I32 => Dtype::I32,
        }
    }

    fn shape(&self) -> &[usize] {
        &self.entry.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        // After one tensor has failed the file is lost, so the rest is not computed.
        let bytes = if self.failed.borrow().is_some() { Ok(Cow::default()) } else { self.bytes() };
        bytes.unwrap_or_else(|error| {
            *self.failed.borrow_mut() = Some(error);
            Cow::default()
        })
    }

    fn data_len(&self) -> usize {
        self.entry.shape.iter().product::<usize>() * self.entry.dtype.size()
    }
}

/// Copies a tensor on the host to another type, rounded once to nearest, ties to even.
pub fn converted(tensor: &Tensor, dtype: DType) -> Tensor {
    /// Calls `wide` on each element of an f64 or i32 tensor, `narrow` on each element of the others.
    fn each(tensor: &Tensor, mut narrow: impl FnMut(usize, f32), mut wide: impl FnMut(usize, f64)) {
        match tensor.dtype() {
            DType::F32 => tensor.slice::<f32>().iter().enumerate().for_each(|(i, &x)| narrow(i, x)),
            DType::F64 => tensor.slice::<f64>().iter().enumerate().for_each(|(i, &x)| wide(i, x)),
            DType::F16 => tensor.slice::<f16>().iter().enumerate().for_each(|(i, &x)| narrow(i, x.into())),
            DType::BF16 => tensor.slice::<bf16>().iter().enumerate().for_each(|(i, &x)| narrow(i, x.into())),
            DType::I32 => tensor.slice::<i32>().iter().enumerate().for_each(|(i, &x)| wide(i, x.into())),
        }
    }
    let mut out = Tensor::zeros(tensor.shape(), dtype);
    macro_rules! fill {
        ($element:ty, $narrow:expr, $wide:expr) => {{
            let out = std::cell::Cell::from_mut(out.slice_mut::<$element>()).as_slice_of_cells();
            each(tensor, |i, x: f32| out[i].set($narrow(x)), |i, x: f64| out[i].set($wide(x)))
        }};
    }
    match dtype {
        DType::F32 => fill!(f32, |x| x, |x| x as f32),
        DType::F64 => fill!(f64, f64::from, |x| x),
        DType::F16 => fill!(f16, f16::from_f32, to_f16),
        DType::BF16 => fill!(bf16, bf16::from_f32, to_bf16),
        DType::I32 => fill!(i32, |x| x as i32, |x| x as i32),
    }
    out
}

fn from_stored(dtype: Dtype) -> Option<DType> {
    match dtype {
        Dtype::F32 => Some(DType::F32),
        Dtype::F64 => Some(DType::F64),
        Dtype::F16 => Some(DType::F16),
        Dtype::BF16 => Some(DType::BF16),
        Dtype::I32 => Some(DType::I32),
        _ => None,
    }
}
