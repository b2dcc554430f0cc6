//! [`Switches`]: what only tests change. They stand in environment variables of the daemon, read once at its
//! start; nobody needs them in operation, and none of them is an interface.
//!
//! What administrators decide is in `config`.

use std::env;
use std::time::Duration;

use super::death::Way;

/// An engine answers or yields every 20 ms of decoding. One that says nothing for so long hangs, in a codec
/// or on a file system.
const SILENCE_MAX: Duration = Duration::from_secs(60);

/// A call on a file that has not come back after this long is on a file system that does not answer. Hard
/// mounts survive a server's restart by waiting; whoever waits longer than this is told to come again.
const PATIENCE: Duration = Duration::from_secs(20);

/// What only tests change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Switches {
    /// `REELD_TEST_DEATH`, `pidfd-open` or `hup`: the best way in which a client's death may be noticed, as
    /// if the kernel had no better one.
    pub death: Way,
    /// `REELD_TEST_SILENCE_MILLIS`: how long an engine may say nothing.
    pub silence_max: Duration,
    /// `REELD_TEST_PATIENCE_MILLIS`: how long a helper may take for a call on a file.
    pub patience: Duration,
    /// `REELD_TEST_AUDIT`: after each turn of the loop all tables are compared, and a fault ends the daemon.
    pub is_audited: bool,
}

impl Switches {
    /// As the environment says.
    pub fn from_environment() -> Switches {
        Switches::from(|name| env::var(name).ok())
    }

    fn from(variable: impl Fn(&str) -> Option<String>) -> Switches {
        let millis = |name: &str, usual: Duration| {
            let asked = variable(name).and_then(|value| value.parse().ok());
            asked.map_or(usual, Duration::from_millis)
        };
        Switches {
            death: match variable("REELD_TEST_DEATH").as_deref() {
                Some("pidfd-open") => Way::PidfdOpen,
                Some("hup") => Way::HangUp,
                Some(_) | None => Way::PeerPidfd,
            },
            silence_max: millis("REELD_TEST_SILENCE_MILLIS", SILENCE_MAX),
            patience: millis("REELD_TEST_PATIENCE_MILLIS", PATIENCE),
            is_audited: variable("REELD_TEST_AUDIT").is_some(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_the_variables_all_is_as_in_operation() {
        let usual = Switches {
            death: Way::PeerPidfd,
            silence_max: SILENCE_MAX,
            patience: PATIENCE,
            is_audited: false,
        };
        assert_eq!(Switches::from(|_| None), usual);
    }

    #[test]
    fn variables_change_what_they_name() {
        let switches = Switches::from(|name| match name {
            "REELD_TEST_DEATH" => Some("hup".into()),
            "REELD_TEST_SILENCE_MILLIS" => Some("250".into()),
            _ => None,
        });
        assert_eq!((switches.death, switches.silence_max.as_millis()), (Way::HangUp, 250));
        assert_eq!((switches.patience, switches.is_audited), (PATIENCE, false));
    }
}
