//! Wraps the few Linux calls that the sandbox needs and the standard library lacks: passing descriptors, polling,
//! forking, signals, and reading the process table. No policy here.

use std::io;
use std::mem::{size_of, zeroed};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::time::{Duration, Instant};

/// Most descriptors one message carries.
const MAX_FDS: usize = 8;
/// Most bytes in one message between the processes of a worker.
pub(super) const MAX_MESSAGE: usize = 1 << 16;
/// Bytes of ancillary data that `MAX_FDS` descriptors need, rounded up generously.
const CONTROL_BYTES: usize = 64;

/// Ancillary data must be aligned like its header.
#[repr(C, align(8))]
struct ControlBuffer([u8; CONTROL_BYTES]);

fn checked(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Adds to an error what was being done.
pub(super) fn doing<E: Into<io::Error>>(what: impl std::fmt::Display) -> impl FnOnce(E) -> io::Error {
    move |error| {
        let error = error.into();
        io::Error::new(error.kind(), format!("{what}: {error}"))
    }
}

/// Makes two connected sockets that keep message boundaries; both close on exec.
pub(super) fn socket_pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let mut fds = [0; 2];
    // SAFETY: `fds` has room for the two descriptors the call writes.
    checked(unsafe {
        libc::socketpair(libc::AF_UNIX, libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC, 0, fds.as_mut_ptr())
    })?;
    // SAFETY: the call succeeded, so both descriptors are open and ours alone.
    Ok(unsafe { (OwnedFd::from_raw_fd(fds[0]), OwnedFd::from_raw_fd(fds[1])) })
}

/// Sends one message with at most `MAX_FDS` descriptors.
pub(super) fn send(socket: BorrowedFd, message: &[u8], fds: &[BorrowedFd]) -> io::Result<()> {
    assert!(fds.len() <= MAX_FDS, "a message carries at most {MAX_FDS} descriptors");
    let mut control = ControlBuffer([0; CONTROL_BYTES]);
    let mut data = libc::iovec { iov_base: message.as_ptr().cast_mut().cast(), iov_len: message.len() };
    // SAFETY: all-zero bytes are a valid msghdr.
    let mut header: libc::msghdr = unsafe { zeroed() };
    header.msg_iov = &raw mut data;
    header.msg_iovlen = 1;
    if !fds.is_empty() {
        let bytes = (fds.len() * size_of::<libc::c_int>()) as libc::c_uint;
        header.msg_control = control.0.as_mut_ptr().cast();
        // SAFETY: CMSG_SPACE and CMSG_LEN only compute. The first header lies in `control`, which is aligned and holds
        // CMSG_SPACE(MAX_FDS * 4) = 48 bytes or more, so the header and `fds.len()` integers fit.
        unsafe {
            header.msg_controllen = libc::CMSG_SPACE(bytes) as _;
            let first = libc::CMSG_FIRSTHDR(&header);
            (*first).cmsg_level = libc::SOL_SOCKET;
            (*first).cmsg_type = libc::SCM_RIGHTS;
            (*first).cmsg_len = libc::CMSG_LEN(bytes) as _;
            for (i, fd) in fds.iter().enumerate() {
                libc::CMSG_DATA(first).cast::<libc::c_int>().add(i).write_unaligned(fd.as_raw_fd());
            }
        }
    }
    loop {
        // SAFETY: `header` points to `data` and `control`, both alive for the call.
        let sent = unsafe { libc::sendmsg(socket.as_raw_fd(), &header, libc::MSG_NOSIGNAL) };
        match sent {
            0.. => return Ok(()),
            _ if io::Error::last_os_error().kind() == io::ErrorKind::Interrupted => {}
            _ => return Err(io::Error::last_os_error()),
        }
    }
}

/// Receives one message of at most `MAX_MESSAGE` bytes (empty when the peer is gone) and at most `MAX_FDS` descriptors.
pub(super) fn receive(socket: BorrowedFd) -> io::Result<(Vec<u8>, Vec<OwnedFd>)> {
    let mut message = Vec::<u8>::with_capacity(MAX_MESSAGE);
    let mut control = ControlBuffer([0; CONTROL_BYTES]);
    let mut data = libc::iovec { iov_base: message.as_mut_ptr().cast(), iov_len: MAX_MESSAGE };
    // SAFETY: all-zero bytes are a valid msghdr.
    let mut header: libc::msghdr = unsafe { zeroed() };
    header.msg_iov = &raw mut data;
    header.msg_iovlen = 1;
    header.msg_control = control.0.as_mut_ptr().cast();
    header.msg_controllen = CONTROL_BYTES as _;
    let length = loop {
        // SAFETY: `header` points to `data` and `control`, both alive and writable for the call, `data` to reserved
        // room.
        let length = unsafe { libc::recvmsg(socket.as_raw_fd(), &mut header, libc::MSG_CMSG_CLOEXEC) };
        if length >= 0 {
            break length as usize;
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    };
    // SAFETY: the kernel has written the first `length` bytes, no more than there is room for.
    unsafe { message.set_len(length) };
    // SAFETY: the kernel filled `control` up to msg_controllen; a SCM_RIGHTS header is followed by as many descriptors
    // as its length says, which are new and ours.
    let fds = unsafe {
        let first = libc::CMSG_FIRSTHDR(&header);
        let carries = !first.is_null() && (*first).cmsg_type == libc::SCM_RIGHTS;
        let bytes = if carries { (*first).cmsg_len as usize - libc::CMSG_LEN(0) as usize } else { 0 };
        (0..bytes / size_of::<libc::c_int>())
            .map(|i| OwnedFd::from_raw_fd(libc::CMSG_DATA(first).cast::<libc::c_int>().add(i).read_unaligned()))
            .collect()
    };
    Ok((message, fds))
}

/// Waits until one of `fds` can be read or its peer is gone, for `timeout` or 60 s at most. Returns a flag for each.
pub(super) fn wait_readable<const N: usize>(fds: [Option<BorrowedFd>; N], timeout: Duration) -> io::Result<[bool; N]> {
    // A negative descriptor is skipped by the kernel.
    let mut polled =
        fds.map(|fd| libc::pollfd { fd: fd.map_or(-1, |fd| fd.as_raw_fd()), events: libc::POLLIN, revents: 0 });
    // Rounded up, so that the caller's deadline has passed when the time is over.
    let milliseconds = timeout.as_micros().div_ceil(1000).min(60_000) as libc::c_int;
    // SAFETY: `polled` has N entries.
    match checked(unsafe { libc::poll(polled.as_mut_ptr(), N as libc::nfds_t, milliseconds) }) {
        Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok([false; N]),
        Err(error) => Err(error),
        Ok(_) => Ok(polled.map(|entry| entry.revents != 0)),
    }
}

/// True when nobody holds the other end of a socket any more, even if there is still something to read from it.
pub(super) fn peer_is_gone(socket: BorrowedFd) -> bool {
    let mut polled = libc::pollfd { fd: socket.as_raw_fd(), events: 0, revents: 0 };
    // SAFETY: one entry, alive over the call.
    unsafe { libc::poll(&raw mut polled, 1, 0) > 0 && polled.revents & libc::POLLHUP != 0 }
}

/// Makes reads return `WouldBlock` instead of waiting.
pub(super) fn set_nonblocking(fd: BorrowedFd) -> io::Result<()> {
    // SAFETY: plain flag calls on an open descriptor.
    unsafe {
        let flags = checked(libc::fcntl(fd.as_raw_fd(), libc::F_GETFL))?;
        checked(libc::fcntl(fd.as_raw_fd(), libc::F_SETFL, flags | libc::O_NONBLOCK)).map(drop)
    }
}

/// Sends SIGKILL to a child of this process that nobody has waited for yet: until then no other process has its number.
pub(super) fn kill_child(pid: i32) {
    signal_number(pid, libc::SIGKILL);
}

/// Sends SIGKILL to a process of the table. Does nothing if it has ended, even if another process has its number now.
pub(super) fn kill(target: &Process) {
    signal(target, libc::SIGKILL);
}

/// Sends SIGSTOP, else as [`kill`].
pub(super) fn stop(target: &Process) {
    signal(target, libc::SIGSTOP);
}

fn signal(target: &Process, number: i32) {
    // Opened before the table is read again: if the number still belongs to the same process then, so does the handle.
    let handle = process_handle(target.pid as u32);
    if process(target.pid).is_none_or(|now| now.started != target.started) {
        return;
    }
    match handle {
        Some(handle) => signal_handle(handle.as_fd(), number),
        None => signal_number(target.pid, number),
    }
}

fn signal_number(pid: i32, number: i32) {
    if pid > 1 {
        // SAFETY: a plain call; numbers that mean more than one process are excluded.
        unsafe { libc::kill(pid, number) };
    }
}

/// Opens a handle of the process `pid`, which never stands for a later process with this number. `None` when the
/// process is gone or the kernel has no handles.
pub(super) fn process_handle(pid: u32) -> Option<OwnedFd> {
    // SAFETY: a plain call; a descriptor it returns is new and ours.
    unsafe {
        let fd = libc::syscall(libc::SYS_pidfd_open, pid as libc::pid_t, 0);
        (fd >= 0).then(|| OwnedFd::from_raw_fd(fd as libc::c_int))
    }
}

/// Sends SIGKILL to the process of a handle. Does nothing if it is gone.
pub(super) fn kill_handle(process: BorrowedFd) {
    signal_handle(process, libc::SIGKILL);
}

fn signal_handle(process: BorrowedFd, number: i32) {
    // SAFETY: a plain call; a null info means none.
    unsafe {
        libc::syscall(libc::SYS_pidfd_send_signal, process.as_raw_fd(), number, std::ptr::null::<libc::siginfo_t>(), 0)
    };
}

/// Returns the processors that this process may run on; empty if that cannot be found out.
pub(super) fn processors() -> Vec<usize> {
    // SAFETY: all-zero bytes are a valid set, and the call writes no more than its size.
    unsafe {
        let mut set: libc::cpu_set_t = zeroed();
        if libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &mut set) != 0 {
            return vec![];
        }
        (0..libc::CPU_SETSIZE as usize).filter(|&processor| libc::CPU_ISSET(processor, &set)).collect()
    }
}

/// Pins this process, and what it starts from now on, to one processor. Best effort.
pub(super) fn stay_on(processor: usize) {
    // SAFETY: all-zero bytes are a valid set; `processor` is one of `processors`, so it lies in the set.
    unsafe {
        let mut set: libc::cpu_set_t = zeroed();
        libc::CPU_SET(processor, &mut set);
        libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &set);
    }
}

/// Forks. Some(pid) in the parent, None in the child.
///
/// # Safety
/// The process must have one thread only, or locks held by the others stay locked in the child.
pub(super) unsafe fn fork() -> io::Result<Option<i32>> {
    // SAFETY: the caller's promise.
    let pid = checked(unsafe { libc::fork() })?;
    Ok((pid != 0).then_some(pid))
}

/// Forks with the child in new namespaces, given by their clone flags.
///
/// # Safety
/// As for `fork`.
pub(super) unsafe fn fork_into(namespaces: libc::c_int) -> io::Result<Option<i32>> {
    let flags = libc::c_long::from(namespaces | libc::SIGCHLD);
    // SAFETY: the caller's promise; without its own stack the child goes on with a copy of this one, as after fork.
    let pid = unsafe { libc::syscall(libc::SYS_clone, flags, 0usize, 0usize, 0usize, 0usize) };
    if pid < 0 { Err(io::Error::last_os_error()) } else { Ok((pid != 0).then_some(pid as i32)) }
}

/// Ends this process at once: nothing is dropped or flushed.
pub(super) fn exit_now(code: i32) -> ! {
    // SAFETY: a plain call.
    unsafe { libc::_exit(code) }
}

/// Closes every descriptor above 2 but `kept`, where the kernel can.
///
/// # Safety
/// The owners of the closed descriptors never use or drop them again.
pub(super) unsafe fn close_all_but<const N: usize>(kept: [BorrowedFd; N]) {
    let mut kept = kept.map(|fd| fd.as_raw_fd() as u32);
    kept.sort_unstable();
    let mut first = 3;
    for next in kept.into_iter().chain([u32::MAX]) {
        if first < next {
            // SAFETY: the caller's promise.
            unsafe { libc::syscall(libc::SYS_close_range, first, next - 1, 0) };
        }
        first = next.saturating_add(1);
    }
}

/// Returns a descriptor that can be read whenever children of this process have ended. Blocks SIGCHLD from now on.
pub(super) fn child_ends() -> io::Result<std::fs::File> {
    // SAFETY: all-zero bytes are room for a set, which the first call makes; the descriptor is new and ours.
    unsafe {
        let mut set: libc::sigset_t = zeroed();
        libc::sigemptyset(&mut set);
        libc::sigaddset(&mut set, libc::SIGCHLD);
        checked(libc::sigprocmask(libc::SIG_BLOCK, &set, std::ptr::null_mut()))?;
        let fd = checked(libc::signalfd(-1, &set, libc::SFD_NONBLOCK | libc::SFD_CLOEXEC))?;
        Ok(std::fs::File::from_raw_fd(fd))
    }
}

/// Waits for a child's end and returns its CPU time in seconds, including that of children it has waited for.
pub(super) fn wait(pid: i32) -> io::Result<f64> {
    loop {
        // SAFETY: all-zero bytes are a valid rusage.
        let mut usage: libc::rusage = unsafe { zeroed() };
        // SAFETY: a null status is allowed, `usage` lives over the call.
        match checked(unsafe { libc::wait4(pid, std::ptr::null_mut(), 0, &mut usage) }) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result.map(|_| seconds(&usage)),
        }
    }
}

/// Does the same as [`wait`] for a killed child, and calls `beat` at least every `look` meanwhile. Error: it is not
/// gone after `most`.
pub(super) fn wait_meanwhile(
    pid: i32,
    most: Duration,
    look: Duration,
    mut beat: impl FnMut() -> io::Result<()>,
) -> io::Result<f64> {
    let until = Instant::now() + most;
    // Without handles, nothing but the end itself can be waited for.
    let handle = process_handle(pid as u32);
    while let Some(handle) = &handle {
        if let [true] = wait_readable([Some(handle.as_fd())], look)? {
            break;
        }
        if Instant::now() >= until {
            return Err(io::Error::other("a killed process does not end"));
        }
        beat()?;
    }
    wait(pid)
}

/// Returns the CPU time in seconds of this process and of children it has waited for.
pub(super) fn cpu_seconds() -> f64 {
    let of = |who| {
        // SAFETY: all-zero bytes are a valid rusage.
        let mut usage: libc::rusage = unsafe { zeroed() };
        // SAFETY: `usage` lives over the call.
        unsafe { libc::getrusage(who, &mut usage) };
        seconds(&usage)
    };
    of(libc::RUSAGE_SELF) + of(libc::RUSAGE_CHILDREN)
}

fn seconds(usage: &libc::rusage) -> f64 {
    let seconds = |time: libc::timeval| time.tv_sec as f64 + 1e-6 * time.tv_usec as f64;
    seconds(usage.ru_utime) + seconds(usage.ru_stime)
}

/// Kills all other processes of a pid namespace. Panics unless this process is its first.
pub(super) fn end_namespace() {
    assert_eq!(std::process::id(), 1, "only the first process of a pid namespace may end it");
    // SAFETY: -1 means every process that this one can see but itself, which are those of its namespace.
    unsafe { libc::kill(-1, libc::SIGKILL) };
}

/// Attributes of a read-only mount (mount_setattr(2)). Devices on it can be written, but keep their modes and times.
pub(super) const READ_ONLY: u64 = READ_ONLY_DEVICE | 4; // MOUNT_ATTR_NODEV
pub(super) const READ_ONLY_DEVICE: u64 = 1 | 2; // MOUNT_ATTR_RDONLY, MOUNT_ATTR_NOSUID

/// Sets attributes of the mount at `path`, and with `below` of everything mounted below it.
pub(super) fn set_mount(path: &std::path::Path, attributes: u64, below: bool) -> io::Result<()> {
    let attributes: [u64; 4] = [attributes, 0, 0, 0]; // struct mount_attr
    let path = std::ffi::CString::new(std::os::unix::ffi::OsStrExt::as_bytes(path.as_os_str()))?;
    let flags = if below { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: `path` and `attributes` live over the call, which is told the size of the second.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            libc::AT_FDCWD,
            path.as_ptr(),
            flags,
            attributes.as_ptr(),
            size_of_val(&attributes),
        )
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Removes the fault handlers that Rust's runtime installs, since the first process of a pid namespace gets only the
/// signals from inside that it handles.
pub(super) fn handle_no_faults() {
    for number in [libc::SIGSEGV, libc::SIGBUS] {
        // SAFETY: the default runs no code of ours.
        unsafe { libc::signal(number, libc::SIG_DFL) };
    }
}

/// Returns the version of Landlock in this kernel; 0 is none.
pub(super) fn landlock_version() -> i64 {
    // SAFETY: without attributes and with this flag the call only answers.
    unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, std::ptr::null::<u8>(), 0usize, 1u32) }.max(0)
}

/// Replaces stdin with /dev/null.
pub(super) fn null_stdin() -> io::Result<()> {
    let null = std::fs::File::open("/dev/null")?;
    // SAFETY: both descriptors are open; what 0 was is closed.
    checked(unsafe { libc::dup2(null.as_raw_fd(), 0) }).map(drop)
}

/// Starts a session without a terminal: Ctrl-C reaches only the parent, which decides.
pub(super) fn new_session() {
    // SAFETY: a plain call; it fails harmlessly for a group leader.
    unsafe { libc::setsid() };
}

/// Asks the kernel to kill this process when its parent ends.
pub(super) fn die_with_parent() {
    // SAFETY: a plain call.
    unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL as libc::c_ulong) };
}

/// Makes orphaned descendants children of this process instead of init.
pub(super) fn adopt_orphans() {
    // SAFETY: a plain call.
    unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1 as libc::c_ulong) };
}

/// Makes requests to stop (SIGTERM, SIGINT) end this process, or (false) ignores them: they are meant for the trainer,
/// and this process ends with it.
pub(super) fn heed_requests(yes: bool) {
    for number in [libc::SIGTERM, libc::SIGINT] {
        // SAFETY: a plain call; neither choice runs code of ours in a handler.
        unsafe { libc::signal(number, if yes { libc::SIG_DFL } else { libc::SIG_IGN }) };
    }
}

/// Has the kernel reap children as soon as they end, or (false) leaves that to whoever waits for them.
pub(super) fn reap_at_once(yes: bool) {
    // SAFETY: a plain call; neither choice runs code of ours in a handler.
    unsafe { libc::signal(libc::SIGCHLD, if yes { libc::SIG_IGN } else { libc::SIG_DFL }) };
}

/// Switches address randomisation off for what is executed next, so that nothing ordered by address differs between
/// workers. Best effort: some containers forbid it.
pub(super) fn fix_addresses() {
    // SAFETY: a plain call.
    unsafe { libc::personality(libc::ADDR_NO_RANDOMIZE as libc::c_ulong) };
}

/// Reaps every child that has ended. Returns false when there are no children left.
pub(super) fn reap() -> bool {
    loop {
        // SAFETY: a null status is allowed.
        match unsafe { libc::waitpid(-1, std::ptr::null_mut(), libc::WNOHANG) } {
            0 => return true,
            pid if pid < 0 => return false,
            _ => {}
        }
    }
}

/// One line of the process table.
#[derive(Debug, Clone)]
pub(super) struct Process {
    pub pid: i32,
    pub parent: i32,
    /// Start time in ticks since boot: no other process has had this number and this time.
    pub started: u64,
    /// True when a signal or a tracer has stopped it, until it goes on.
    pub is_stopped: bool,
    /// CPU time in seconds, including that of children it has waited for.
    pub cpu_seconds: f64,
    /// Resident bytes, shared pages included.
    pub resident_bytes: u64,
}

/// Counts processes and threads of this user on the whole machine, as the kernel does for RLIMIT_NPROC. Returns 0 for
/// root, which has no such limit.
pub(super) fn tasks_of_user() -> u64 {
    let user = rustix::process::getuid();
    let Ok(entries) = std::fs::read_dir("/proc") else { return 0 };
    let is_own = |info: std::fs::Metadata| std::os::unix::fs::MetadataExt::uid(&info) == user.as_raw();
    let tasks =
        |entry: std::fs::DirEntry| std::fs::read_dir(entry.path().join("task")).map_or(0, Iterator::count) as u64;
    let own = entries.flatten().filter(|entry| !user.is_root() && entry.metadata().is_ok_and(is_own));
    own.map(tasks).sum()
}

/// Returns all processes below `root`, at any depth. Those that end meanwhile may be missing.
pub(super) fn descendants(root: i32) -> Vec<Process> {
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    let table: Vec<Process> =
        entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).filter_map(process).collect();
    below(&table, &[root]).into_iter().cloned().collect()
}

/// Reads one process from the table; `None` when it is gone.
pub(super) fn process(pid: i32) -> Option<Process> {
    let mut line = [0; 1024]; // longer than any line, for a single read: this is called for all processes, often
    let length = std::io::Read::read(&mut std::fs::File::open(format!("/proc/{pid}/stat")).ok()?, &mut line).ok()?;
    parse_stat(pid, &String::from_utf8_lossy(&line[..length]))
}

/// Returns the processes of `table` that are below any of `roots`, at any depth.
pub(super) fn below<'a>(table: &'a [Process], roots: &[i32]) -> Vec<&'a Process> {
    let (mut found, mut parents) = (Vec::new(), roots.to_vec());
    while let Some(parent) = parents.pop() {
        for process in table.iter().filter(|process| process.parent == parent) {
            parents.push(process.pid);
            found.push(process);
        }
    }
    found
}

fn parse_stat(pid: i32, line: &str) -> Option<Process> {
    // The command's name is in parentheses and may hold anything, so count fields from the last one.
    let fields: Vec<&str> = line.rsplit_once(')')?.1.split_ascii_whitespace().collect();
    let ticks = |i: usize| fields.get(i)?.parse::<u64>().ok();
    // SAFETY: plain calls.
    let (ticks_per_second, page) = unsafe { (libc::sysconf(libc::_SC_CLK_TCK), libc::sysconf(libc::_SC_PAGESIZE)) };
    Some(Process {
        pid,
        parent: fields.get(1)?.parse().ok()?,
        started: ticks(19)?,
        is_stopped: fields[0].eq_ignore_ascii_case("t"),
        cpu_seconds: (ticks(11)? + ticks(12)? + ticks(13)? + ticks(14)?) as f64 / ticks_per_second as f64,
        resident_bytes: ticks(21)? * page as u64,
    })
}

/// Returns the resident bytes of a process, shared pages included; 0 when it is gone.
pub(super) fn resident_bytes(pid: i32) -> u64 {
    process(pid).map_or(0, |process| process.resident_bytes)
}

/// Returns the bytes of anonymous and shared memory of a process, which counts its share of shared pages. `None` when
/// they cannot be read.
pub(super) fn proportional_bytes(pid: i32) -> Option<u64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
    let kilobytes = |name| -> Option<u64> {
        text.lines().find_map(|line| line.strip_prefix(name))?.split_ascii_whitespace().next()?.parse().ok()
    };
    Some((kilobytes("Pss_Anon:")? + kilobytes("Pss_Shmem:")?) * 1024)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::io::Read;

    #[test]
    fn a_descriptor_travels_with_its_message() {
        let (left, right) = socket_pair().unwrap();
        let (mut reader, writer) = std::io::pipe().unwrap();
        send(left.as_fd(), b"hello", &[writer.as_fd()]).unwrap();
        drop(writer);
        let (message, mut fds) = receive(right.as_fd()).unwrap();
        assert_eq!(message, b"hello");
        use std::io::Write;
        std::fs::File::from(fds.remove(0)).write_all(b"through").unwrap();
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        assert_eq!(text, "through");
        drop(left);
        assert_eq!(receive(right.as_fd()).unwrap().0, b"");
    }

    #[test]
    fn whoever_has_the_number_of_an_ended_process_gets_no_signal() {
        let mut child = std::process::Command::new("cat").stdin(std::process::Stdio::piped()).spawn().unwrap();
        let now = process(child.id() as i32).unwrap();
        // A process that had this number before.
        kill(&Process { started: now.started - 1, ..now.clone() });
        drop(child.stdin.take());
        assert_eq!(child.wait().unwrap().code(), Some(0));
        let mut child = std::process::Command::new("cat").stdin(std::process::Stdio::piped()).spawn().unwrap();
        kill(&process(child.id() as i32).unwrap());
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(&child.wait().unwrap()), Some(libc::SIGKILL));
    }

    #[test]
    fn who_waits_for_a_long_end_says_meanwhile_that_it_lives() {
        let cat = || std::process::Command::new("cat").stdin(std::process::Stdio::piped()).spawn().unwrap();
        // The child ends after three beats.
        let (mut child, mut beats) = (cat(), 0);
        let input = &mut child.stdin.take();
        let beat = || {
            beats += 1;
            drop(input.take_if(|_| beats == 3));
            Ok(())
        };
        let (hour, look) = (Duration::from_secs(3600), Duration::from_millis(1));
        wait_meanwhile(child.id() as i32, hour, look, beat).unwrap();
        assert!(beats >= 3, "{beats}");
        let mut child = cat();
        let error = wait_meanwhile(child.id() as i32, Duration::ZERO, look, || Ok(())).unwrap_err();
        assert!(error.to_string().contains("does not end"), "{error}");
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn a_command_name_with_parentheses_is_parsed() {
        // The n-th field of proc(5) has the value n - 1.
        let numbers = (4..=24).map(|n| n.to_string()).collect::<Vec<_>>().join(" ");
        let process = parse_stat(7, &format!("7 (a) R (b) S 3 {numbers}")).unwrap();
        assert_eq!((process.pid, process.parent), (7, 3));
        assert_eq!((process.started, process.is_stopped), (21, false));
        assert!(parse_stat(7, &format!("7 (a) T 3 {numbers}")).unwrap().is_stopped);
        // Fields 14 to 17, in hundredths of a second on every Linux; field 24, in pages.
        assert_eq!(process.cpu_seconds, (13 + 14 + 15 + 16) as f64 / 100.0);
        assert_eq!(process.resident_bytes % (23 * 4096), 0);
    }
}
