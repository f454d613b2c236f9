//! Safetensors at the door: a test per malformed form, shards, alignment, writing.
#![allow(clippy::unwrap_used)]

use onestep::error::Kind;
use onestep::tensor::{DType, Tensor};
use onestep::weights::{WeightMap, save};
use std::path::PathBuf;
use tempfile::TempDir;

/// A safetensors file by hand: length, header, data.
fn file(header: &str, data: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), data].concat()
}

fn folder_with(bytes: &[u8]) -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.safetensors");
    std::fs::write(&path, bytes).unwrap();
    (dir, path)
}

/// Opening (and getting `a`, of shape (2)) fails as content, names the file and says `expected`.
fn check_refused(bytes: &[u8], expected: &str) {
    let (dir, path) = folder_with(bytes);
    let error = WeightMap::open(dir.path()).and_then(|map| map.get("a", &[2])).unwrap_err();
    assert_eq!(error.kind(), Kind::Content, "{error}");
    for part in [&path.display().to_string(), expected] {
        assert!(error.to_string().contains(part), "{error} should contain {part:?}");
    }
}

const TWO: &str = r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#;

#[test]
fn a_whole_file_is_used_in_place() {
    // The header is padded to a multiple of 8, as writers do.
    let header = format!("{TWO}{}", " ".repeat(TWO.len().next_multiple_of(8) - TWO.len()));
    let (dir, _) = folder_with(&file(&header, bytemuck::cast_slice(&[1.5f32, -2.0])));
    let map = WeightMap::open(dir.path()).unwrap();
    let tensor = map.get("a", &[2]).unwrap();
    assert!(tensor.is_mapped() && map.notes().is_empty());
    assert_eq!(tensor.slice::<f32>(), [1.5, -2.0]);
    assert_eq!(map.names().collect::<Vec<_>>(), ["a"]);
    assert!(map.contains("a") && !map.contains("b"));
    drop(map);
    assert_eq!(tensor.slice::<f32>(), [1.5, -2.0], "a tensor keeps its map alive");
}

#[test]
fn a_misaligned_tensor_is_copied_and_noted() {
    let header = format!("{TWO}{}", " ".repeat(TWO.len().next_multiple_of(8) - TWO.len() + 1));
    let (dir, path) = folder_with(&file(&header, bytemuck::cast_slice(&[1.5f32, -2.0])));
    let map = WeightMap::open(dir.path()).unwrap();
    let tensor = map.get("a", &[2]).unwrap();
    assert!(!tensor.is_mapped());
    assert_eq!(tensor.slice::<f32>(), [1.5, -2.0]);
    let note = format!("{}: tensor a is not aligned in the file and was copied", path.display());
    assert_eq!(map.notes(), [note]);
}

#[test]
fn an_empty_file_is_refused() {
    check_refused(&[], "safetensors file of 0 bytes");
}

#[test]
fn a_file_shorter_than_its_header_is_refused() {
    check_refused(&file(TWO, &[0; 8])[..20], "not a whole safetensors file");
}

#[test]
fn truncated_data_is_refused() {
    check_refused(&file(TWO, &[0; 7]), "the header says 8 bytes of data, found 7");
}

#[test]
fn bytes_after_the_data_are_refused() {
    check_refused(&file(TWO, &[0; 9]), "the header says 8 bytes of data, found 9");
}

#[test]
fn a_header_length_beyond_the_cap_is_refused() {
    check_refused(&[&u64::MAX.to_le_bytes()[..], &[b'{'; 64]].concat(), "not a whole safetensors file");
}

#[test]
fn a_header_that_is_no_json_is_refused() {
    check_refused(&file("{\"a\":", &[0; 8]), "not a whole safetensors file");
}

#[test]
fn a_header_that_is_no_utf8_is_refused() {
    let mut bytes = file(TWO, &[0; 8]);
    bytes[10] = 0xff;
    check_refused(&bytes, "not a whole safetensors file");
}

#[test]
fn a_shape_that_disagrees_with_the_offsets_is_refused() {
    check_refused(&file(&TWO.replace("[2]", "[3]"), &[0; 8]), "tensor a: 8 bytes do not hold [3] of F32");
}

#[test]
fn a_shape_that_overflows_is_refused() {
    let shape = format!("[{0},{0},{0}]", 1u64 << 40);
    check_refused(&file(&TWO.replace("[2]", &shape), &[0; 8]), "tensor a: 8 bytes do not hold [1099511627776,");
}

#[test]
fn offsets_outside_the_file_are_refused() {
    check_refused(
        &file(&TWO.replace("[2]", "[4]").replace("[0,8]", "[0,16]"), &[0; 8]),
        "the header says 16 bytes of data, found 8",
    );
}

#[test]
fn offsets_that_run_backwards_are_refused() {
    check_refused(
        &file(&TWO.replace("[0,8]", "[8,0]"), &[0; 8]),
        "tensor a lies at bytes 8 to 0 of the data, expected a start at 0",
    );
}

#[test]
fn overlapping_tensors_are_refused() {
    let b = r#","b":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}}"#;
    check_refused(
        &file(&TWO.replace("}}", &format!("}}{b}")), &[0; 12]),
        "tensor b lies at bytes 4 to 12 of the data, expected a start at 8",
    );
}

#[test]
fn a_gap_between_tensors_is_refused() {
    let b = r#","b":{"dtype":"F32","shape":[2],"data_offsets":[12,20]}}"#;
    check_refused(
        &file(&TWO.replace("}}", &format!("}}{b}")), &[0; 20]),
        "tensor b lies at bytes 12 to 20 of the data, expected a start at 8",
    );
}

#[test]
fn a_tensor_named_twice_is_refused() {
    let again = r#","a":{"dtype":"F32","shape":[2],"data_offsets":[8,16]}}"#;
    check_refused(&file(&TWO.replace("}}", &format!("}}{again}")), &[0; 16]), "tensor a lies at bytes 8 to 16");
}

#[test]
fn an_unknown_type_is_refused() {
    check_refused(&file(&TWO.replace("F32", "F33"), &[0; 8]), "tensor a: unknown variant `F33`");
}

#[test]
fn a_type_that_models_do_not_have_is_refused_by_name() {
    check_refused(&file(&TWO.replace("F32", "U32"), &[0; 8]), "tensor a is of type U32; expected F32, F16 or BF16");
}

#[test]
fn too_many_dimensions_are_refused() {
    check_refused(
        &file(&TWO.replace("[2]", "[1,1,1,1,1,1,1,1,2]"), &[0; 8]),
        "tensor a has 9 dimensions; expected at most 8",
    );
}

#[test]
fn another_shape_is_refused_with_found_and_expected() {
    check_refused(&file(&TWO.replace("[2]", "[1,2]"), &[0; 8]), "tensor a has shape [1, 2], expected [2]");
}

#[test]
fn a_missing_tensor_is_named() {
    check_refused(&file(&TWO.replace("\"a\"", "\"b\""), &[0; 8]), "no tensor a");
}

#[test]
fn a_folder_without_weights_says_what_is_expected() {
    let dir = tempfile::tempdir().unwrap();
    let error = WeightMap::open(dir.path()).map(|_| ()).unwrap_err();
    assert_eq!(error.kind(), Kind::Content);
    assert!(error.to_string().contains("expected model.safetensors or model.safetensors.index.json"), "{error}");
}

fn sharded(index: &str) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (name, value) in [("a", 1.0f32), ("b", 2.0)] {
        let tensor = Tensor::from_slice(&[1], &[value]);
        save(&dir.path().join(format!("{name}.safetensors")), &[(name.into(), &tensor)], None).unwrap();
    }
    std::fs::write(dir.path().join("model.safetensors.index.json"), index).unwrap();
    dir
}

#[test]
fn shards_are_found_through_the_index() {
    let dir = sharded(r#"{"metadata":{"total_size":8},"weight_map":{"a":"a.safetensors","b":"b.safetensors"}}"#);
    let map = WeightMap::open(dir.path()).unwrap();
    assert_eq!(map.get("a", &[1]).unwrap().slice::<f32>(), [1.0]);
    assert_eq!(map.get("b", &[1]).unwrap().slice::<f32>(), [2.0]);
}

fn check_index_refused(index: &str, expected: &str) {
    let dir = sharded(index);
    let error = WeightMap::open(dir.path()).map(|_| ()).unwrap_err();
    assert_eq!(error.kind(), Kind::Content, "{error}");
    assert!(error.to_string().contains("model.safetensors.index.json"), "{error}");
    assert!(error.to_string().contains(expected), "{error} should contain {expected:?}");
}

#[test]
fn an_index_without_a_weight_map_is_refused() {
    check_index_refused(r#"{"metadata":{}}"#, "missing field `weight_map`");
}

#[test]
fn an_index_that_names_a_missing_shard_is_refused() {
    check_index_refused(r#"{"weight_map":{"a":"c.safetensors"}}"#, "c.safetensors");
}

#[test]
fn an_index_that_lies_about_a_shard_is_refused() {
    check_index_refused(r#"{"weight_map":{"a":"b.safetensors"}}"#, "tensor a is not in it");
}

#[test]
fn an_index_that_leaves_its_folder_is_refused() {
    for file in ["../a.safetensors", "/a.safetensors", ".."] {
        check_index_refused(&format!(r#"{{"weight_map":{{"a":"{file}"}}}}"#), "must be a file name in the same folder");
    }
}

#[test]
fn saved_tensors_come_back_in_place_in_every_type() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.safetensors");
    let values = Tensor::from_slice(&[3, 1], &[0.1f32, -1e-3, 65504.0]);
    let odd = Tensor::from_slice(&[1], &[half::f16::from_f32(0.5)]);
    let (wide, ids) = (Tensor::from_slice(&[2], &[0.1f64, 2.0]), Tensor::from_slice(&[1], &[-7]));
    let list = [("x", &values), ("odd", &odd), ("wide", &wide), ("ids", &ids)].map(|(n, t)| (n.to_string(), t));
    save(&path, &list, None).unwrap();
    let map = WeightMap::open_file(&path).unwrap();
    for (name, tensor) in &list {
        let back = map.get(name, tensor.shape()).unwrap();
        assert_eq!((back.dtype(), back.as_bytes()), (tensor.dtype(), tensor.as_bytes()));
        assert!(back.is_mapped());
    }
    let first = std::fs::read(&path).unwrap();
    save(&path, &list, None).unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), first, "equal tensors give equal bytes");
    assert!(String::from_utf8_lossy(&first).contains(r#""format":"pt""#));
    assert_eq!(map.get("ids", &[1]).unwrap().slice::<i32>(), [-7], "an old map survives the replacement of its file");

    save(&path, &[("x".into(), &values)], Some(DType::BF16)).unwrap();
    let back = WeightMap::open_file(&path).unwrap().get("x", &[3, 1]).unwrap();
    let rounded = values.slice::<f32>().iter().map(|&x| half::bf16::from_f32(x)).collect::<Vec<_>>();
    assert_eq!(back.slice::<half::bf16>(), rounded);
}

#[test]
fn a_failing_save_leaves_nothing_behind() {
    let dir = tempfile::tempdir().unwrap();
    let tensor = Tensor::from_slice(&[1], &[1.0f32]);
    let file = dir.path().join("file");
    save(&file, &[("a".into(), &tensor)], None).unwrap();
    let before = std::fs::read(&file).unwrap();
    let error = save(&file.join("below"), &[("a".into(), &tensor)], None).unwrap_err();
    assert!(error.to_string().contains(&file.display().to_string()), "{error}");
    let twice = save(&file, &[("a".into(), &tensor), ("a".into(), &tensor)], None).unwrap_err();
    assert!(twice.to_string().contains("two tensors have one name"), "{twice}");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    assert_eq!(std::fs::read(&file).unwrap(), before);
}
