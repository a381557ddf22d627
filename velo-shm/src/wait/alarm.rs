//! A descriptor that becomes readable after a while.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};

use crate::fork::SharedFd;

/// Goes off once each time it is set. Event loops' own timers are as exact as their selectors, which
/// count milliseconds.
#[derive(Debug)]
pub struct Alarm {
    /// Before the timer: it is dropped first.
    _shared: SharedFd,
    timer: TimerFd,
}

impl Alarm {
    /// One that is not set.
    ///
    /// # Errors
    /// When there are no more descriptors.
    pub fn create() -> io::Result<Self> {
        let flags = TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC;
        let timer = TimerFd::new(ClockId::CLOCK_MONOTONIC, flags)?;
        Ok(Alarm {
            _shared: SharedFd::new(timer.as_fd()),
            timer,
        })
    }

    /// Sets it to go off after `after`, in place of the time set before.
    ///
    /// # Errors
    /// Those of the system; none is known that could occur.
    pub fn set(&self, after: Duration) -> io::Result<()> {
        // Zero would mean never.
        let after = TimeSpec::from_duration(after.max(Duration::from_nanos(1)));
        let at = Expiration::OneShot(after);
        Ok(self.timer.set(at, TimerSetTimeFlags::empty())?)
    }

    /// Silences it, if it has gone off.
    pub fn silence(&self) {
        let _ = self.timer.wait(); // does not block: there is nothing to silence
    }
}

impl AsFd for Alarm {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.timer.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

    use super::*;

    fn rings(alarm: &Alarm, timeout: PollTimeout) -> bool {
        poll(
            &mut [PollFd::new(alarm.as_fd(), PollFlags::POLLIN)],
            timeout,
        )
        .unwrap()
            > 0
    }

    #[test]
    fn it_goes_off_once_until_it_is_set_again() {
        let alarm = Alarm::create().unwrap();
        alarm.silence();
        assert!(!rings(&alarm, PollTimeout::ZERO));
        for after in [Duration::from_micros(200), Duration::ZERO] {
            alarm.set(after).unwrap();
            assert!(rings(&alarm, PollTimeout::NONE));
            alarm.silence();
            assert!(!rings(&alarm, PollTimeout::ZERO));
        }
        alarm.set(Duration::from_secs(3600)).unwrap();
        assert!(!rings(&alarm, PollTimeout::ZERO));
    }
}
