//! Builds the root of one slot's scripts: only the host's interpreter, libraries and a few devices, all read-only.

use super::python::Folders;
use super::system::{self, doing};
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_bind, mount_bind_recursive, mount_change};
use rustix::process::{getgid, getuid, pivot_root};
use rustix::thread::{UnshareFlags, unshare_unsafe};
use std::ffi::CString;
use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

/// Where the host's root is mounted until the keeper detaches it.
pub(super) const OLD: &str = "/old";
pub(super) const DEVICES: [&str; 5] = ["/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom"];

/// Folders that the new root replaces, besides the folder for temporary files.
const COVERED: [&str; 4] = ["/dev", "/proc", super::WORKSPACE, OLD];

/// Chooses the folder for a script's temporary files, mounted anew for each: the first of /tmp and /var/tmp that exists
/// and does not contain the interpreter. Error: there is none.
pub(super) fn scratch(folders: &Folders) -> io::Result<&'static Path> {
    let is_free = |folder: &&Path| !folders.read.iter().any(|read| read.starts_with(folder));
    let candidates = ["/tmp", "/var/tmp"].map(Path::new);
    let found = candidates.into_iter().filter(|folder| folder.is_dir()).find(is_free);
    found.ok_or_else(|| io::Error::other(format!("the interpreter lies in each of {candidates:?} that is there")))
}

/// Maps a path of the host to its place below [`OLD`].
pub(super) fn old(path: impl AsRef<Path>) -> PathBuf {
    Path::new(OLD).join(path.as_ref().strip_prefix("/").unwrap_or(path.as_ref()))
}

/// Mounts a tmpfs on `target`, with `options` as in mount(8).
pub(super) fn mount_tmpfs(target: &Path, flags: MountFlags, options: &str) -> io::Result<()> {
    let options = CString::new(options)?;
    mount("tmpfs", target, "tmpfs", MountFlags::NOSUID | MountFlags::NODEV | flags, options.as_c_str())
        .map_err(doing(format!("mounting {}", target.display())))
}

/// Moves this process into namespaces of its own (mounts, network, host name; also users, where the others need it),
/// with a root that holds `folders`, a few devices, empty folders for the mounts of each job, and the host's root at
/// [`OLD`]. May be called once. Returns true when it made a user namespace, in which no other user exists. `root` is
/// the folder from [`scratch`]: it serves as mount point of the new root and is uncovered when that is moved away.
pub(super) fn enter(folders: &Folders, root: &Path) -> io::Result<bool> {
    let has_users = unshare(getuid().is_root())?;
    mount_change("/", MountPropagationFlags::REC | MountPropagationFlags::PRIVATE)
        .map_err(doing("mounts of its own"))?;
    if let Some(folder) = folders.read.iter().find(|folder| COVERED.iter().any(|covered| folder.starts_with(covered))) {
        return Err(io::Error::other(format!(
            "the interpreter's {} lies where a script has a folder of its own",
            folder.display()
        )));
    }
    mount_tmpfs(root, MountFlags::empty(), "size=1m,nr_inodes=4096,mode=755")?;
    let inside = |path: &Path| root.join(path.strip_prefix("/").unwrap_or(path));
    for folder in &folders.read {
        show(folder, &inside(folder)).map_err(doing(format!("showing {}", folder.display())))?;
    }
    for folder in &folders.hidden {
        mount_tmpfs(&inside(folder), MountFlags::RDONLY, "size=4k,nr_inodes=2,mode=555")?;
    }
    for folder in ["/etc", "/dev/shm", "/proc", super::WORKSPACE, OLD].map(Path::new).into_iter().chain([root]) {
        fs::create_dir_all(inside(folder))?;
    }
    let cache = Path::new("/etc/ld.so.cache");
    if cache.exists() {
        fs::copy(cache, inside(cache))?;
    }
    let (uid, gid) = (getuid().as_raw(), getgid().as_raw());
    let line = format!("agent:x:{uid}:{gid}::{}:/bin/false\n", super::WORKSPACE);
    fs::write(inside(Path::new("/etc/passwd")), line)?;
    for device in DEVICES.map(Path::new) {
        fs::write(inside(device), "")?;
        mount_bind(device, inside(device)).map_err(doing(format!("showing {}", device.display())))?;
        system::set_mount(&inside(device), system::READ_ONLY_DEVICE, false)?;
    }
    std::env::set_current_dir(root)?;
    pivot_root(".", inside(Path::new(OLD))).map_err(doing("moving to the new root"))?;
    std::env::set_current_dir("/")?;
    Ok(has_users)
}

/// Enters new namespaces. Adds a user namespace, in which this process keeps its ids, unless it may do without one.
/// Returns true when it added one.
fn unshare(is_root: bool) -> io::Result<bool> {
    let flags = UnshareFlags::NEWNS | UnshareFlags::NEWNET | UnshareFlags::NEWUTS;
    let (uid, gid) = (getuid().as_raw(), getgid().as_raw());
    // SAFETY: the flags do not include the table of descriptors.
    if is_root && unsafe { unshare_unsafe(flags) }.is_ok() {
        return Ok(false);
    }
    // SAFETY: as above.
    unsafe { unshare_unsafe(flags | UnshareFlags::NEWUSER) }.map_err(doing("namespaces of its own"))?;
    fs::write("/proc/self/setgroups", "deny")?;
    fs::write("/proc/self/uid_map", format!("{uid} {uid} 1"))?;
    fs::write("/proc/self/gid_map", format!("{gid} {gid} 1"))?;
    Ok(true)
}

/// Shows a folder of the host read-only at `inside`; a symbolic link becomes the same link. Skips a folder that does
/// not exist, and one that is already there as part of an earlier one.
fn show(folder: &Path, inside: &Path) -> io::Result<()> {
    let Ok(info) = fs::symlink_metadata(folder) else { return Ok(()) };
    if fs::symlink_metadata(inside).is_ok() {
        return Ok(());
    }
    inside.parent().map_or(Ok(()), fs::create_dir_all)?;
    if info.is_symlink() {
        return symlink(fs::read_link(folder)?, inside);
    }
    fs::create_dir(inside)?;
    fs::set_permissions(inside, Permissions::from_mode(0o755))?;
    mount_bind_recursive(folder, inside)?;
    system::set_mount(inside, system::READ_ONLY, true)
}
