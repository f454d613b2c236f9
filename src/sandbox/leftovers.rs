//! Tidies the job's folder after a script that wrote on the host's own tree (tiers 0 and 1): only regular files and
//! folders stay, not too many and not too deep, which their owner can read. Runs when the script and all its processes
//! are dead.

use super::keeper::{MOST_DEPTH, MOST_ENTRIES};
use crate::files::scratch::{entries, remove_trees};
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

/// Paths below this length in bytes leave room for an entry's name within the kernel's limit.
const LONGEST: usize = 2048;

/// Removes everything from `folder` that is neither a regular file nor a folder, and what is too much or too deep. What
/// cannot be removed stays: whoever reads a file there must check its type first.
pub(super) fn tidy(folder: &Path) {
    let (mut left, mut todo, mut too_deep) = (MOST_ENTRIES, vec![(folder.to_path_buf(), 0)], Vec::new());
    while let Some((folder, depth)) = todo.pop() {
        for path in entries(&folder) {
            let Ok(info) = fs::symlink_metadata(&path) else { continue };
            let is_wanted = left > 0 && depth < MOST_DEPTH && path.as_os_str().len() < LONGEST;
            left = left.saturating_sub(1);
            if info.is_dir() {
                match is_wanted {
                    true => todo.push((path, depth + 1)),
                    false => too_deep.push(path),
                }
            } else if !info.is_file() || !is_wanted {
                let _ = fs::remove_file(&path);
            } else if info.permissions().mode() & 0o6400 != 0o400 {
                let _ = fs::set_permissions(&path, Permissions::from_mode(0o644));
            }
        }
    }
    remove_trees(folder, too_deep);
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn what_is_strange_too_much_or_too_deep_goes() {
        let folder = tempfile::tempdir().unwrap();
        let place = |name: &str| folder.path().join(name);
        fs::write(place("kept"), "text").unwrap();
        fs::write(place("shut"), "text").unwrap();
        fs::set_permissions(place("shut"), Permissions::from_mode(0o0)).unwrap();
        symlink("/etc/passwd", place("link")).unwrap();
        fs::create_dir(place("many")).unwrap();
        (0..3000).for_each(|i| fs::write(place("many").join(i.to_string()), "").unwrap());
        // Deeper than a path can be long, so made from the inside out.
        let mut inner = place("deep");
        fs::create_dir(&inner).unwrap();
        for _ in 0..3000 {
            let outer = place("outer");
            fs::create_dir(&outer).unwrap();
            fs::rename(&inner, outer.join("deep")).unwrap();
            inner = place("deep");
            fs::rename(&outer, &inner).unwrap();
        }
        tidy(folder.path());
        let mut names: Vec<_> = fs::read_dir(folder.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, ["deep", "kept", "many", "shut"]);
        assert_eq!(fs::read_to_string(place("shut")).unwrap(), "text");
        let (mut count, mut depth, mut todo) = (0, 0, vec![(folder.path().to_path_buf(), 0)]);
        while let Some((folder, at)) = todo.pop() {
            depth = depth.max(at);
            for entry in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap()) {
                count += 1;
                todo.extend(entry.file_type().unwrap().is_dir().then(|| (entry.path(), at + 1)));
            }
        }
        assert!(count <= MOST_ENTRIES && depth <= MOST_DEPTH, "{count} entries, {depth} deep");
        assert!(fs::symlink_metadata(place("link")).is_err());
    }
}
