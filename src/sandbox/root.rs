//! The root of one slot's scripts: nothing of the host but the interpreter, libraries and a few devices, all to be read only.

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

/// Where the host's root is, as long as it is.
pub(super) const OLD: &str = "/old";
pub(super) const DEVICES: [&str; 5] = ["/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom"];

/// What a root of its own has anew, beside the folder for temporary files.
const COVERED: [&str; 4] = ["/dev", "/proc", super::WORKSPACE, OLD];

/// The folder for a script's temporary files, new for each: one in which the interpreter does not lie.
pub(super) fn scratch(folders: &Folders) -> io::Result<&'static Path> {
    let is_free = |folder: &&Path| !folders.read.iter().any(|read| read.starts_with(folder));
    let candidates = ["/tmp", "/var/tmp"].map(Path::new);
    let found = candidates.into_iter().filter(|folder| folder.is_dir()).find(is_free);
    found.ok_or_else(|| io::Error::other(format!("the interpreter lies in each of {candidates:?} that is there")))
}

/// A path of the host, seen from inside.
pub(super) fn old(path: impl AsRef<Path>) -> PathBuf {
    Path::new(OLD).join(path.as_ref().strip_prefix("/").unwrap_or(path.as_ref()))
}

/// A tmpfs on `target`; `options` as mount(8) takes them.
pub(super) fn mount_tmpfs(target: &Path, flags: MountFlags, options: &str) -> io::Result<()> {
    let options = CString::new(options)?;
    mount("tmpfs", target, "tmpfs", MountFlags::NOSUID | MountFlags::NODEV | flags, options.as_c_str())
        .map_err(doing(format!("mounting {}", target.display())))
}

/// Moves this process, once, into namespaces of its own (mounts, network, host name; users too where that needs no rights), with a root
/// that holds `folders`, a few devices, empty folders for what each job mounts, and the host's root at [`OLD`]. True when it made a
/// namespace of users: then no other user exists there. `root` is the folder of [`scratch`], which is uncovered again when the new root is
/// moved from it.
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

/// New namespaces: without one of users where this process may, else with one in which it is who it was.
fn unshare(is_root: bool) -> io::Result<bool> {
    let flags = UnshareFlags::NEWNS | UnshareFlags::NEWNET | UnshareFlags::NEWUTS;
    let (uid, gid) = (getuid().as_raw(), getgid().as_raw());
    // SAFETY: the table of descriptors is not among the flags.
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

/// A folder of the host at `inside`, to be read only; a link as the link it is. One that is there already, in an earlier one, stays.
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
