//! Every door at which files come in, under thousands of damaged files: no panic, no allocation beyond twice the file's size (and a
//! constant), every error content that names a file. A failing case is printed with its number and left in the temporary folder: put the
//! file into tests/corpus, whose files must all be refused. For longer: MALFORMED_CASES=1000000 cargo test --release --test malformed
#![allow(clippy::unwrap_used)]

mod doors;
mod mutate;
mod policy;

use doors::{DOORS, Door};
use mutate::Mutator;
use onestep::error::Kind;
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

/// The system's allocator, which remembers the largest request of each thread.
struct Watched;

thread_local! {
    static LARGEST: Cell<usize> = const { Cell::new(0) };
}

fn noted(size: usize) {
    // Without a destructor the cell outlives the thread's other values; a thread that is ending is not watched.
    let _ = LARGEST.try_with(|largest| largest.set(largest.get().max(size)));
}

// SAFETY: every request goes to the system's allocator as it came; noting its size allocates nothing.
unsafe impl GlobalAlloc for Watched {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        noted(layout.size());
        // SAFETY: the caller's contract is the system allocator's.
        unsafe { System.alloc(layout) }
    }
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        noted(layout.size());
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }
    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        noted(size);
        // SAFETY: as above.
        unsafe { System.realloc(pointer, layout, size) }
    }
    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Watched = Watched;

/// What a door may take beside its file: tables of regular expressions, the vocabulary of the fixture, the rotary table.
const CONSTANT: usize = 1 << 20;

fn cases(usual: usize) -> usize {
    std::env::var("MALFORMED_CASES").map_or(usual, |text| text.parse().unwrap())
}

/// What the door says to the file as it lies there; `None` when it lets it in.
fn knock(door: &Door, folder: &Path, size: usize, case: &str) -> Option<String> {
    LARGEST.set(0);
    let answer = catch_unwind(AssertUnwindSafe(|| (door.open)(folder)));
    let largest = LARGEST.get();
    let file = folder.join(door.file);
    let answer = answer.unwrap_or_else(|_| panic!("{}: {case} made it panic: {}", door.name, file.display()));
    if door.bounded {
        let bound = 2 * size + CONSTANT;
        assert!(largest <= bound, "{}: {case} asked for {largest} bytes at once, file of {size}", door.name);
    }
    let error = answer.err()?;
    let text = error.to_string();
    assert_eq!(error.kind(), Kind::Content, "{}: {case}: {text}", door.name);
    assert!(text.contains(&folder.display().to_string()), "{}: {case}: no file in {text:?}", door.name);
    assert!(!text.contains("{:?}") && text.len() > folder.display().to_string().len() + 20, "{}: {text}", door.name);
    Some(text)
}

/// Damages the door's file in many ways; some share of the damage must be noticed, or the door is open.
fn check(name: &str, usual: usize) {
    let door = DOORS.iter().find(|door| door.name == name).unwrap();
    let folder = tempfile::tempdir().unwrap();
    doors::furnish(folder.path());
    let file = folder.path().join(door.file);
    let whole = std::fs::read(&file).unwrap();
    assert_eq!(knock(door, folder.path(), whole.len(), "the whole file"), None);
    let (count, mut refused) = (cases(usual), 0);
    for number in 0..count {
        let bytes = Mutator::new(number as u64).damaged(&whole);
        doors::replace(&file, &bytes);
        match catch_unwind(AssertUnwindSafe(|| knock(door, folder.path(), bytes.len(), &format!("case {number}")))) {
            Ok(answer) => refused += usize::from(answer.is_some()),
            Err(panic) => {
                println!("left in {}", folder.keep().display());
                std::panic::resume_unwind(panic);
            }
        }
    }
    assert!(refused * 4 > count, "{name}: only {refused} of {count} damaged files were refused");
    doors::replace(&file, &whole);
    assert_eq!(knock(door, folder.path(), whole.len(), "the whole file again"), None);
}

macro_rules! doors {
    ($($test:ident $name:literal $cases:literal,)*) => {
        $(#[test]
        fn $test() {
            check($name, $cases);
        })*

        #[test]
        fn every_door_is_tried() {
            assert_eq!(DOORS.map(|door| door.name), [$($name),*]);
        }
    };
}

doors! {
    weights "weights" 1500,
    index "index" 800,
    shard "shard" 800,
    config "config" 1500,
    tokenizer "tokenizer" 150,
    tokenizer_config "tokenizer_config" 150,
    generation_config "generation_config" 150,
    adapter_config "adapter_config" 1500,
    adapter_weights "adapter_weights" 1500,
    conversations "conversations" 600,
    trajectories "trajectories" 600,
    parquet "parquet" 600,
    reply "reply" 4000,
    patch "patch" 4000,
    csv "csv" 4000,
    csv_by_id "csv_by_id" 4000,
    npy "npy" 4000,
    trajectory_file "trajectory_file" 1500,
}

#[test]
fn files_of_the_corpus_are_refused() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus");
    let folder = tempfile::tempdir().unwrap();
    doors::furnish(folder.path());
    let mut tried = 0;
    for door in &DOORS {
        let place = folder.path().join(door.file);
        let whole = std::fs::read(&place).unwrap();
        let Ok(entries) = std::fs::read_dir(corpus.join(door.name)) else { continue };
        for entry in entries {
            let entry = entry.unwrap().path();
            let bytes = std::fs::read(&entry).unwrap();
            doors::replace(&place, &bytes);
            let said = knock(door, folder.path(), bytes.len(), &entry.display().to_string());
            assert!(said.is_some(), "{} was let in", entry.display());
            tried += 1;
        }
        doors::replace(&place, &whole);
    }
    assert!(tried >= 30, "only {tried} files");
}
