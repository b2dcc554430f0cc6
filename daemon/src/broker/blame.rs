//! Whose fault an engine's death is, and when a file has had enough tries: [`Death`] and [`Blame`]. Pure.
//!
//! Starting the next engine is the matter of `engines` and `backoff`.

use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

/// Crashes over one file after which a request is given up: the second one is no accident.
const CRASHES_MAX: u8 = 2;

/// Engines killed from outside over one file, after which a request is given up. Nobody can tell an
/// administrator's kill from that of a kernel that is out of memory, and a file that needs too much memory
/// needs it again.
const KILLS_MAX: u8 = 9;

/// How an engine ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Death {
    /// By what it was doing: a signal that faults raise, an exit, or it hung or talked nonsense and was ended.
    Crash(String),
    /// By somebody else's signal.
    Kill(String),
}

impl Death {
    /// What the kernel says about a process that has ended.
    pub fn of(status: ExitStatus) -> Death {
        match status.signal() {
            Some(
                libc::SIGSEGV
                | libc::SIGABRT
                | libc::SIGBUS
                | libc::SIGILL
                | libc::SIGFPE
                | libc::SIGSYS
                | libc::SIGTRAP
                | libc::SIGXCPU,
            )
            | None => Death::Crash(status.to_string()),
            Some(_) => Death::Kill(status.to_string()),
        }
    }
}

/// What engines suffered over one file on behalf of one request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Blame {
    crash_count: u8,
    kill_count: u8,
}

impl Blame {
    /// Takes note of a death. True if the file has had enough tries.
    pub fn add(&mut self, death: &Death) -> bool {
        match death {
            Death::Crash(_) => self.crash_count = self.crash_count.saturating_add(1),
            Death::Kill(_) => self.kill_count = self.kill_count.saturating_add(1),
        }
        self.crash_count >= CRASHES_MAX || self.kill_count >= KILLS_MAX
    }

    /// Crashes and kills together.
    pub fn death_count(self) -> u8 {
        self.crash_count.saturating_add(self.kill_count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn by_signal(signal: i32) -> Death {
        Death::of(ExitStatus::from_raw(signal))
    }

    #[test]
    fn faults_are_crashes_and_other_signals_are_kills() {
        for signal in [libc::SIGSEGV, libc::SIGABRT, libc::SIGBUS, libc::SIGILL, libc::SIGFPE, libc::SIGSYS] {
            assert!(matches!(by_signal(signal), Death::Crash(_)), "{signal}");
        }
        for signal in [libc::SIGKILL, libc::SIGTERM, libc::SIGINT, libc::SIGHUP] {
            assert!(matches!(by_signal(signal), Death::Kill(_)), "{signal}");
        }
        assert!(matches!(Death::of(ExitStatus::from_raw(1 << 8)), Death::Crash(_)), "exit status 1");
    }

    #[test]
    fn second_crash_is_enough() {
        let mut blame = Blame::default();
        assert!(!blame.add(&by_signal(libc::SIGSEGV)));
        assert!(blame.add(&by_signal(libc::SIGABRT)));
    }

    #[test]
    fn kills_are_forgiven_until_they_go_on_and_on() {
        let mut blame = Blame::default();
        for _ in 1..KILLS_MAX {
            assert!(!blame.add(&by_signal(libc::SIGKILL)));
        }
        assert!(blame.add(&by_signal(libc::SIGKILL)));
        assert_eq!(blame.death_count(), KILLS_MAX);
    }

    #[test]
    fn crash_between_kills_is_still_the_first() {
        let mut blame = Blame::default();
        assert!(!blame.add(&by_signal(libc::SIGKILL)));
        assert!(!blame.add(&by_signal(libc::SIGSEGV)));
        assert!(!blame.add(&by_signal(libc::SIGKILL)));
    }
}
