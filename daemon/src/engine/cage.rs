//! What an engine may not do: it parses foreign files with much C code, so it gives up everything that a
//! decoder does not need before it has read the first byte of any.
//!
//! What does not live here: limits of processor time; those are set from outside, by the service manager or a
//! container.

use std::collections::BTreeMap;
use std::env;

use landlock::{ABI, Access, AccessFs, AccessNet, Ruleset, RulesetAttr, RulesetStatus, Scope};
use rustix::process::{Resource, Rlimit, Signal};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch,
};

/// Why an engine could not be caged. It does not work uncaged: then it ends.
#[derive(Debug, thiserror::Error)]
pub enum CageError {
    /// A system call was refused.
    #[error("the engine cannot be confined: {0}")]
    System(#[from] rustix::io::Errno),
    /// Landlock is there but does not do its work.
    #[error("the engine cannot be confined by Landlock: {0}")]
    Landlock(#[from] landlock::RulesetError),
    /// The list of system calls is refused.
    #[error("the engine cannot be confined by seccomp: {0}")]
    Seccomp(#[from] seccompiler::Error),
    /// The list of system calls cannot be compiled.
    #[error("the engine cannot be confined by seccomp: {0}")]
    Filter(#[from] seccompiler::BackendError),
}

/// Ends this process with the broker, and leaves no picture of its memory behind.
pub fn bind_to_broker() -> Result<(), CageError> {
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    rustix::process::setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) })?;
    Ok(())
}

/// Limits the private memory of this process: heap, stacks of threads, decoded pictures. `RLIMIT_DATA` counts
/// what is mapped private and writable, so arenas, which are shared, do not count, and an allocation above it
/// fails with an error that decoders handle. `RLIMIT_AS` would count arenas and libraries too, `RLIMIT_RSS` does
/// nothing, and a control group kills instead.
pub fn limit_memory(bytes: u64) -> Result<(), CageError> {
    // Whoever started the daemon may have set less, which only a privileged process could raise.
    let allowed = rustix::process::getrlimit(Resource::Data).maximum.map_or(bytes, |hard| hard.min(bytes));
    rustix::process::setrlimit(Resource::Data, Rlimit { current: Some(allowed), maximum: Some(allowed) })?;
    Ok(())
}

/// Where memory runs out, the kernel shall take an engine rather than the broker: engines come back and their
/// work is done again. Raising the number needs no right; where /proc is hidden, nothing is lost.
pub fn die_first() {
    const SCORE_ADDED: i32 = 500;
    const PATH: &str = "/proc/self/oom_score_adj";
    let own: i32 = std::fs::read_to_string(PATH).ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0);
    let raised = (own + SCORE_ADDED).min(1000);
    if let Err(error) = std::fs::write(PATH, raised.to_string()) {
        tracing::debug!(%error, "the kernel may kill the broker before this engine where memory runs out");
    }
}

/// Locks this thread, and all that it will start, out of the file system, the network and other processes.
pub fn lock() -> Result<(), CageError> {
    rustix::thread::set_no_new_privs(true)?;
    lock_files()?;
    lock_system_calls()
}

/// No path can be opened any more. Kernels before 5.13 cannot do that; seccomp refuses the calls there too.
fn lock_files() -> Result<(), CageError> {
    const NEWEST: ABI = ABI::V6;
    let ruleset = Ruleset::default()
        .handle_access(AccessFs::from_all(NEWEST))?
        .handle_access(AccessNet::from_all(NEWEST))?
        .scope(Scope::from_all(NEWEST))?;
    let status = ruleset.create()?.restrict_self()?;
    if status.ruleset == RulesetStatus::NotEnforced {
        tracing::warn!("this kernel has no Landlock: engines are confined by seccomp alone");
    }
    Ok(())
}

/// Any system call that is not in the list fails with `EPERM`, which libraries cope with better than with a
/// signal: they try `openat` for locales and processor counts and go on without.
fn lock_system_calls() -> Result<(), CageError> {
    let Ok(architecture) = TargetArch::try_from(env::consts::ARCH) else {
        tracing::warn!(
            "no system call filter for {}: engines are confined by Landlock alone",
            env::consts::ARCH
        );
        return Ok(());
    };
    // glibc falls back to `clone`, whose flags can be checked, only where `clone3` seems not to exist.
    let hidden = BTreeMap::from([(libc::SYS_clone3, Vec::new())]);
    apply(hidden, SeccompAction::Allow, SeccompAction::Errno(libc::ENOSYS as u32), architecture)?;
    let refused = SeccompAction::Errno(libc::EPERM as u32);
    apply(allowed()?, refused, SeccompAction::Allow, architecture)
}

fn apply(
    rules: BTreeMap<i64, Vec<SeccompRule>>,
    other: SeccompAction,
    listed: SeccompAction,
    architecture: TargetArch,
) -> Result<(), CageError> {
    let program: BpfProgram = SeccompFilter::new(rules, other, listed, architecture)?.try_into()?;
    Ok(seccompiler::apply_filter(&program)?)
}

/// All that decoding, shared memory and one socket need.
const ALLOWED: &[i64] = &[
    // Files that came as descriptors, the broker's socket, memory files for indexes.
    libc::SYS_pread64,
    libc::SYS_pwrite64,
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_lseek,
    libc::SYS_fstat,
    libc::SYS_newfstatat,
    libc::SYS_statx,
    libc::SYS_fcntl,
    libc::SYS_close,
    libc::SYS_recvmsg,
    libc::SYS_sendmsg,
    libc::SYS_ppoll,
    libc::SYS_memfd_create,
    libc::SYS_ftruncate,
    // Memory.
    libc::SYS_brk,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_madvise,
    // Threads of decoders.
    libc::SYS_clone3,
    libc::SYS_futex,
    libc::SYS_set_robust_list,
    libc::SYS_rseq,
    libc::SYS_gettid,
    libc::SYS_getpid,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_yield,
    libc::SYS_exit,
    libc::SYS_exit_group,
    // Time and chance.
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_nanosleep,
    libc::SYS_gettimeofday,
    libc::SYS_getrandom,
    libc::SYS_getrusage,
    libc::SYS_restart_syscall,
    // Signals: dying loudly.
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sigaltstack,
    libc::SYS_tgkill,
];

fn allowed() -> Result<BTreeMap<i64, Vec<SeccompRule>>, CageError> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> =
        ALLOWED.iter().map(|number| (*number, Vec::new())).collect();
    #[cfg(target_arch = "x86_64")]
    rules.insert(libc::SYS_poll, Vec::new());
    // Memory, but never to run code from.
    let not_executable = masked(2, libc::PROT_EXEC as u64, 0)?;
    rules.insert(libc::SYS_mmap, vec![not_executable.clone()]);
    rules.insert(libc::SYS_mprotect, vec![not_executable]);
    // Threads, but no processes.
    rules.insert(libc::SYS_clone, vec![masked(0, libc::CLONE_THREAD as u64, libc::CLONE_THREAD as u64)?]);
    // Limits may be read: thread stacks are sized by one.
    rules.insert(libc::SYS_prlimit64, vec![masked(2, u64::MAX, 0)?]);
    Ok(rules)
}

/// The argument's bits under `mask` are `value`.
fn masked(argument: u8, mask: u64, value: u64) -> Result<SeccompRule, CageError> {
    let operator = SeccompCmpOp::MaskedEq(mask);
    let condition = SeccompCondition::new(argument, SeccompCmpArgLen::Qword, operator, value)?;
    Ok(SeccompRule::new(vec![condition])?)
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::ErrorKind;
    use std::net::TcpListener;
    use std::os::unix::net::UnixStream;
    use std::process::Command;
    use std::thread;

    use super::*;

    /// Only the thread that locks itself is locked.
    fn in_cage<T: Send>(work: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| {
            let caged = scope.spawn(|| {
                lock().unwrap();
                work()
            });
            caged.join().unwrap()
        })
    }

    #[test]
    fn caged_thread_opens_no_file() {
        let error = in_cage(|| File::open("/etc/passwd").map(drop)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::PermissionDenied);
    }

    #[test]
    fn caged_thread_has_no_network_and_no_sockets() {
        assert!(in_cage(|| TcpListener::bind("127.0.0.1:0").map(drop)).is_err());
        assert!(in_cage(|| UnixStream::pair().map(drop)).is_err());
    }

    #[test]
    fn caged_thread_starts_threads_but_no_processes() {
        assert_eq!(in_cage(|| thread::spawn(|| 7).join().unwrap()), 7);
        assert!(in_cage(|| Command::new("/bin/true").status().map(drop)).is_err());
    }

    #[test]
    fn caged_thread_cannot_make_memory_executable() {
        let protection = rustix::mm::ProtFlags::READ | rustix::mm::ProtFlags::EXEC;
        let error = in_cage(|| {
            // SAFETY: a new private mapping overlaps nothing; it is not made at all.
            let mapped = unsafe {
                let flags = rustix::mm::MapFlags::PRIVATE;
                rustix::mm::mmap_anonymous(std::ptr::null_mut(), 4096, protection, flags)
            };
            mapped.map(drop)
        });
        assert_eq!(error, Err(rustix::io::Errno::PERM));
    }

    #[test]
    fn panic_in_the_cage_can_be_caught() {
        let caught = in_cage(|| std::panic::catch_unwind(|| panic!("on purpose")).is_err());
        assert!(caught);
    }
}
