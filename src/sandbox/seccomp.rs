//! Makes the filters of system calls that a script has no use for; loader.py installs them. They are deny lists, since
//! Python and its libraries use many calls, and namespaces, Landlock and dropped capabilities protect behind them.
//! Unknown calls and those with 32-bit pointers fail as if they did not exist.

use crate::error::{Error, Result};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    sock_filter,
};
use std::collections::BTreeMap;

/// Calls refused to every script: mounting, namespaces, other processes, the kernel, its keys and its clocks.
const REFUSED: &[i64] = &[
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_move_mount,
    libc::SYS_open_tree,
    libc::SYS_fsopen,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fspick,
    libc::SYS_mount_setattr,
    libc::SYS_unshare,
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_process_madvise,
    libc::SYS_kcmp,
    libc::SYS_pidfd_open,
    libc::SYS_pidfd_getfd,
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_keyctl,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_kexec_load,
    libc::SYS_kexec_file_load,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_reboot,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_acct,
    libc::SYS_quotactl,
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    libc::SYS_adjtimex,
    libc::SYS_clock_adjtime,
    libc::SYS_sethostname,
    libc::SYS_setdomainname,
    libc::SYS_syslog,
    libc::SYS_personality,
    libc::SYS_name_to_handle_at,
    libc::SYS_open_by_handle_at,
    libc::SYS_fanotify_init,
    libc::SYS_mknodat,
    libc::SYS_socket,
    libc::SYS_mbind,
    libc::SYS_migrate_pages,
    libc::SYS_move_pages,
    libc::SYS_vhangup,
    libc::SYS_shmget,
    libc::SYS_shmat,
    libc::SYS_shmctl,
    libc::SYS_semget,
    libc::SYS_semop,
    libc::SYS_semtimedop,
    libc::SYS_semctl,
    libc::SYS_msgget,
    libc::SYS_msgsnd,
    libc::SYS_msgrcv,
    libc::SYS_msgctl,
    libc::SYS_mq_open,
    libc::SYS_mq_unlink,
    libc::SYS_sched_setaffinity, // would leave the slot's processor
    libc::SYS_memfd_create,      // memory that is counted for no process
    libc::SYS_memfd_secret,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_mknod,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_iopl,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_ioperm,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_modify_ldt,
];

/// Calls refused last: a script's process first needs them to join the job's namespaces.
const REFUSED_LAST: &[i64] = &[libc::SYS_setns];

/// Number of fchmodat2, which libc does not name yet.
const FCHMODAT2: i64 = 452;

/// Calls refused on the host's own tree, where Landlock leaves them open: they change modes, owners, attributes and
/// times of files, and priorities of other processes.
const REFUSED_ON_THE_HOST: &[i64] = &[
    libc::SYS_fchmod,
    libc::SYS_fchmodat,
    libc::SYS_fchown,
    libc::SYS_fchownat,
    libc::SYS_setxattr,
    libc::SYS_lsetxattr,
    libc::SYS_fsetxattr,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_chmod,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_chown,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_lchown,
    libc::SYS_removexattr,
    libc::SYS_lremovexattr,
    libc::SYS_fremovexattr,
    FCHMODAT2,
    libc::SYS_utimensat,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_utime,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_utimes,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_futimesat,
    libc::SYS_setpriority,
    libc::SYS_sched_setattr,
    libc::SYS_sched_setparam,
    libc::SYS_sched_setscheduler,
    libc::SYS_ioprio_set,
];

/// Calls that send signals, which Landlock confines from its version 6 on.
const SIGNALS: &[i64] = &[
    libc::SYS_kill,
    libc::SYS_tkill,
    libc::SYS_tgkill,
    libc::SYS_rt_sigqueueinfo,
    libc::SYS_rt_tgsigqueueinfo,
    libc::SYS_pidfd_send_signal,
];
/// Commands of fcntl, and of ioctl, that set a descriptor's owner, which gets a signal when there is something to read.
const SIGNALS_BY_FCNTL: [u64; 2] = [libc::F_SETOWN as u64, 15]; // F_SETOWN_EX
const SIGNALS_BY_IOCTL: [u64; 2] = [0x8901, 0x8902]; // FIOSETOWN, SIOCSPGRP
/// Types of socket pairs that can send to any address: datagrams, by their name and by that of raw sockets.
const ADDRESSABLE: [u64; 2] = [libc::SOCK_DGRAM as u64, libc::SOCK_RAW as u64];
/// Command of fcntl that makes others wait when they open a file of the same user.
const LEASES: [u64; 1] = [1024]; // F_SETLEASE
/// Commands of ioctl that type into a terminal.
const TYPING: [u64; 2] = [libc::TIOCSTI, libc::TIOCLINUX];

/// Newest call that is known here (mseal); later ones do not exist for a script.
const LAST_CALL: u32 = 462;
/// Flags of clone that make a namespace (time, mount, cgroup, uts, ipc, user, pid, net), and the one that makes a
/// sibling: a child of the loader, which does not wait for it.
const CLONE_FLAGS: [u64; 9] =
    [0x80, 0x2_0000, 0x200_0000, 0x400_0000, 0x800_0000, 0x1000_0000, 0x2000_0000, 0x4000_0000, 0x8000];

/// Filters as hexadecimal bytes, in the order they are installed.
#[derive(Debug, Clone, serde::Serialize, serde::Deserialize)]
pub(super) struct Filters {
    /// For every script.
    pub all: Vec<String>,
    /// In addition where a script lives on the host's own tree (tier 1).
    pub host: Vec<String>,
    /// In addition there, where Landlock does not confine signals.
    pub signals: Vec<String>,
    /// For every script too, installed after everything else.
    pub last: Vec<String>,
}

/// Makes the filters for this processor. Error: they are not known for it.
pub(super) fn filters() -> Result<Filters> {
    let eperm = SeccompAction::Errno(libc::EPERM as u32);
    let mut refused = list(REFUSED);
    let flags = CLONE_FLAGS.iter().map(|&flag| rule(0, SeccompCmpOp::MaskedEq(flag), flag));
    refused.insert(libc::SYS_clone, flags.collect::<Result<Vec<_>>>()?);
    refused.insert(libc::SYS_prlimit64, vec![rule(0, SeccompCmpOp::Ne, 0)?]); // limits of another process
    refused.insert(libc::SYS_ioctl, equal(1, &TYPING)?);
    refused.insert(libc::SYS_fcntl, equal(1, &LEASES)?);
    let mut pairs = vec![rule(0, SeccompCmpOp::Ne, libc::AF_UNIX as u64)?];
    for kind in ADDRESSABLE {
        pairs.push(rule(1, SeccompCmpOp::MaskedEq(0xF), kind)?);
    }
    refused.insert(libc::SYS_socketpair, pairs);
    let mut signals = list(SIGNALS);
    signals.insert(libc::SYS_fcntl, equal(1, &SIGNALS_BY_FCNTL)?);
    signals.insert(libc::SYS_ioctl, equal(1, &SIGNALS_BY_IOCTL)?);
    let missing = list(&[libc::SYS_clone3]); // glibc then uses clone, whose flags a filter can see
    Ok(Filters {
        all: vec![
            hex(&known_calls()),
            hex(&compile(missing, SeccompAction::Errno(libc::ENOSYS as u32))?),
            hex(&compile(refused, eperm.clone())?),
        ],
        host: vec![hex(&compile(list(REFUSED_ON_THE_HOST), eperm.clone())?)],
        signals: vec![hex(&compile(signals, eperm.clone())?)],
        last: vec![hex(&compile(list(REFUSED_LAST), eperm)?)],
    })
}

fn list(calls: &[i64]) -> BTreeMap<i64, Vec<SeccompRule>> {
    calls.iter().map(|&call| (call, vec![])).collect()
}

/// Makes rules that match calls whose `argument` is one of `values`.
fn equal(argument: u8, values: &[u64]) -> Result<Vec<SeccompRule>> {
    values.iter().map(|&value| rule(argument, SeccompCmpOp::Eq, value)).collect()
}

fn rule(argument: u8, operator: SeccompCmpOp, value: u64) -> Result<SeccompRule> {
    let condition = SeccompCondition::new(argument, SeccompCmpArgLen::Dword, operator, value);
    condition.and_then(|condition| SeccompRule::new(vec![condition])).map_err(failed)
}

fn compile(rules: BTreeMap<i64, Vec<SeccompRule>>, action: SeccompAction) -> Result<BpfProgram> {
    let arch = std::env::consts::ARCH.try_into().map_err(failed)?;
    SeccompFilter::new(rules, SeccompAction::Allow, action, arch).and_then(BpfProgram::try_from).map_err(failed)
}

/// Makes the filter by which unknown newer calls, including x86's with 32-bit pointers, fail as if there were none.
fn known_calls() -> BpfProgram {
    let statement = |code: u32, jt, jf, k| sock_filter { code: code as u16, jt, jf, k };
    vec![
        statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0), // the call's number
        statement(libc::BPF_JMP | libc::BPF_JGT | libc::BPF_K, 0, 1, LAST_CALL),
        statement(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32),
        statement(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ALLOW),
    ]
}

fn hex(program: &BpfProgram) -> String {
    let bytes = program.iter().flat_map(|s| {
        let [c0, c1] = s.code.to_ne_bytes();
        let [k0, k1, k2, k3] = s.k.to_ne_bytes();
        [c0, c1, s.jt, s.jf, k0, k1, k2, k3]
    });
    bytes.map(|byte| format!("{byte:02x}")).collect()
}

fn failed(error: impl std::fmt::Display) -> Error {
    Error::system(format!("making the sandbox's system call filter: {error}"))
}
