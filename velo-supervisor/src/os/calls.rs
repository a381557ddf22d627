//! The few system calls that `nix` has no safe door to. Nothing here decides anything.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::time::Duration;

use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{
    SaFlags, SigAction, SigHandler, SigSet, SigmaskHow, Signal, pthread_sigmask, sigaction, signal,
};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid, waitpid};
use nix::unistd::SysconfVar;

use super::exit::Exit;

/// A descriptor of a process, readable when it has ended. It names the process itself, so a pid
/// that is used again cannot confuse it.
#[cfg(target_os = "linux")]
pub(crate) fn pidfd_open(pid: i32) -> io::Result<OwnedFd> {
    // SAFETY: the call takes two integers and touches no memory of ours.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    let fd = i32::try_from(fd).map_err(|_| io::Error::from(io::ErrorKind::InvalidData))?;
    // SAFETY: the call succeeded, so `fd` is an open descriptor that nobody else owns; the system
    // has set close-on-exec on it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Sends a signal to the process behind a pidfd. A process that has ended is no error.
#[cfg(target_os = "linux")]
pub(crate) fn pidfd_signal(pidfd: BorrowedFd<'_>, signal: libc::c_int) -> io::Result<()> {
    // SAFETY: a null `siginfo` asks the system to fill it as `kill` would; the rest are integers.
    let rc = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_raw_fd(),
            signal,
            std::ptr::null::<libc::siginfo_t>(),
            0,
        )
    };
    if rc == 0 {
        return Ok(());
    }
    let error = io::Error::last_os_error();
    if error.raw_os_error() == Some(libc::ESRCH) {
        Ok(())
    } else {
        Err(error)
    }
}

/// The signal that has a worker write down its stacks: one that programs leave alone.
pub(crate) fn stacks_signal() -> libc::c_int {
    libc::SIGRTMIN() + 9
}

/// How many bytes of memory a process has that no other shares by intention: neither the memory of
/// links nor that of programs counts. None for a process that is not there.
#[cfg(target_os = "linux")]
pub(crate) fn own_memory(pid: i32) -> Option<u64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/statm")).ok()?;
    let mut pages = text.split(' ').skip(1).map(|word| word.parse::<u64>().ok());
    let (resident, shared) = (pages.next()??, pages.next()??);
    let page = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE);
    let page = u64::try_from(page.ok()??).ok()?;
    resident.saturating_sub(shared).checked_mul(page)
}

/// How many threads this process has.
#[cfg(target_os = "linux")]
pub(crate) fn thread_count() -> u32 {
    let threads = std::fs::read_dir("/proc/self/task").map_or(0, Iterator::count);
    // At least the one that asks, also where /proc is not mounted.
    u32::try_from(threads).unwrap_or(u32::MAX).max(1)
}

/// Processor time that a process has used, and bytes of memory that it has resident; None where the
/// system does not tell.
pub(crate) fn usage(pid: i32) -> Option<(Duration, u64)> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // Its name, in brackets, may contain anything.
    let fields: Vec<_> = stat.rsplit_once(')')?.1.split_ascii_whitespace().collect();
    let number = |at: usize| fields.get(at)?.parse::<u64>().ok();
    let system = |name| {
        nix::unistd::sysconf(name)
            .ok()
            .flatten()
            .and_then(|n| u64::try_from(n).ok())
    };
    let ticks = number(11)?.saturating_add(number(12)?);
    let cpu =
        Duration::from_millis(ticks.saturating_mul(1000) / system(SysconfVar::CLK_TCK)?.max(1));
    let memory = number(21)?.saturating_mul(system(SysconfVar::PAGE_SIZE)?);
    Some((cpu, memory))
}

/// When a process started, in clock ticks since the system did; None for one that is not there. Its
/// number alone may be used again.
pub(crate) fn started(pid: i32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // Its name, in brackets, may contain anything.
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace();
    fields.nth(19)?.parse().ok()
}

/// The number of the calling thread, as debuggers and Python's `threading.get_ident` know it.
pub(crate) fn this_thread() -> u64 {
    // SAFETY: the call takes nothing, touches nothing and cannot fail.
    unsafe { libc::pthread_self() as u64 }
}

/// Collects a child of this process that has ended, unless it is `spared`. Only where every other
/// child is nobody else's.
pub(crate) fn collect_child(spared: Option<i32>) -> Option<(i32, Exit)> {
    let peek = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
    let pid = waitid(Id::All, peek).ok()?.pid()?;
    if Some(pid.as_raw()) == spared {
        return None;
    }
    let exit = match waitpid(pid, Some(WaitPidFlag::WNOHANG)).ok()? {
        WaitStatus::Exited(_, code) => Exit::Code(code),
        WaitStatus::Signaled(_, signal, _) => Exit::Signal(signal as i32),
        _ => Exit::Unknown,
    };
    Some((pid.as_raw(), exit))
}

/// Whether a descriptor is readable (or, for a pidfd, whether its process has ended) right now.
pub(crate) fn is_readable(fd: BorrowedFd<'_>) -> bool {
    let mut fds = [PollFd::new(fd, PollFlags::POLLIN)];
    matches!(poll(&mut fds, PollTimeout::ZERO), Ok(n) if n > 0)
}

/// Ignores a signal from now on, in this process and in its forks.
pub(crate) fn ignore_signal(which: Signal) -> io::Result<()> {
    // SAFETY: `SigIgn` runs no code of ours in a handler.
    unsafe { signal(which, SigHandler::SigIgn) }
        .map(drop)
        .map_err(io::Error::from)
}

/// Has nothing come of a signal in this process. Unlike one that is ignored, it has its default action
/// in the programs that this process runs.
pub(crate) fn disregard_signal(which: Signal) -> io::Result<()> {
    extern "C" fn nothing(_: libc::c_int) {}
    let action = SigAction::new(
        SigHandler::Handler(nothing),
        SaFlags::SA_RESTART,
        SigSet::empty(),
    );
    // SAFETY: the handler does nothing.
    unsafe { sigaction(which, &action) }
        .map(drop)
        .map_err(io::Error::from)
}

/// Gives all signals their default actions back, for a process that starts afresh. Callable between fork
/// and exec.
pub(crate) fn default_signals() {
    for which in Signal::iterator() {
        // Two cannot be had otherwise, and are as they should be.
        let _ = default_signal(which);
    }
}

/// Gives a signal its default action back.
pub(crate) fn default_signal(which: Signal) -> io::Result<()> {
    // SAFETY: `SigDfl` runs no code of ours in a handler.
    unsafe { signal(which, SigHandler::SigDfl) }
        .map(drop)
        .map_err(io::Error::from)
}

/// Keeps signals away from the calling thread: they belong to the threads of the program.
pub(crate) fn block_signals() {
    // It fails only for an unknown `how`.
    let _ = pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::all()), None);
}

/// Lets the signal in that asks for stacks.
pub(crate) fn unblock_stacks_signal() {
    let mut set = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: the set is made empty before anything else is done with it, and the signal is one that
    // there is; the calls write to nothing but the set and the mask of the calling thread.
    unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        libc::sigaddset(set.as_mut_ptr(), stacks_signal());
        libc::pthread_sigmask(libc::SIG_UNBLOCK, set.as_ptr(), std::ptr::null_mut());
    }
}

/// Lets all signals in, for a process that starts afresh.
pub(crate) fn unblock_signals() {
    // It fails only for an unknown `how`.
    let _ = pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None);
}

/// Keeps a descriptor over the next exec. Callable between fork and exec.
pub(crate) fn keep_over_exec(fd: BorrowedFd<'_>) -> io::Result<()> {
    nix::fcntl::fcntl(
        fd,
        nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::empty()),
    )
    .map(drop)
    .map_err(io::Error::from)
}

/// Closes a descriptor at the next exec.
pub(crate) fn close_on_exec(fd: BorrowedFd<'_>) -> io::Result<()> {
    nix::fcntl::fcntl(
        fd,
        nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::FD_CLOEXEC),
    )
    .map(drop)
    .map_err(io::Error::from)
}

/// Has the system send this process a signal when the thread ends that has started it. Kept over the
/// next exec, and not by what this process forks. Callable between fork and exec.
#[cfg(target_os = "linux")]
pub(crate) fn when_orphaned(signal: Signal) -> io::Result<()> {
    nix::sys::prctl::set_pdeathsig(signal).map_err(io::Error::from)
}
#[cfg(not(target_os = "linux"))]
pub(crate) fn when_orphaned(_: Signal) -> io::Result<()> {
    Ok(())
}

/// Makes reads and writes on a descriptor return instead of waiting.
pub(crate) fn set_nonblocking(fd: BorrowedFd<'_>) -> io::Result<()> {
    use nix::fcntl::{FcntlArg, OFlag, fcntl};
    let flags = OFlag::from_bits_retain(fcntl(fd, FcntlArg::F_GETFL)?);
    fcntl(fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(())
}
