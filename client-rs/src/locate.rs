//! Where daemons may be, in which order they are tried, and what is said where none answers.
//!
//! How one is started is in `autostart.rs`.

use std::env;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::autostart::{self, Private};
use crate::client::ClientBuilder;
use crate::error::Error;
use crate::handshake::{ANSWER_TIMEOUT, Dialled, dial};
use crate::link::Link;

/// Where the system's daemon listens.
const SYSTEM_SOCKET: &str = "/run/reeld/reeld.sock";

/// The name of the socket of a daemon that a user started, in the user's runtime folder.
const USER_SOCKET: &str = "reeld.sock";

/// The group whose members may use the system's daemon.
const GROUP: &str = "reeld";

/// How often all places are tried: a private daemon may end between its start and our connecting.
const ROUNDS: u32 = 3;

/// Where a client found its daemon, and where it looks when that daemon went away. Looking elsewhere would
/// put another daemon in its place without a word: one with other limits, of which nobody knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Home {
    /// At the socket that was named.
    Named = 1,
    /// The system's.
    System,
    /// One that the user started.
    User,
    /// One that this library started for the user.
    Private,
}

impl Home {
    /// The home of that number. There is none before the first connection, which has not asked yet.
    pub(crate) fn from_number(number: u8) -> Home {
        [Home::System, Home::User, Home::Private]
            .into_iter()
            .find(|home| *home as u8 == number)
            .unwrap_or(Home::Named)
    }
}

/// Why a daemon that was there could not be reached again.
#[derive(Debug)]
pub(crate) enum Redialled {
    /// Nobody answers. The text says where.
    Absent(String),
    /// Somebody may be there, but this process may not connect.
    Denied(Error),
    /// Somebody is there who refuses, or who does not speak as a daemon does: asking again is no use.
    Failed(Error),
}

/// Reads what the environment says of the daemon's place.
pub(crate) fn settle(mut builder: ClientBuilder) -> ClientBuilder {
    builder.name.get_or_insert_with(program_name);
    builder.socket = builder.socket.or_else(|| path_variable("REELD_SOCKET"));
    builder.autostart.get_or_insert_with(|| {
        builder.socket.is_none() && env::var_os("REELD_NO_AUTOSTART").is_none_or(|value| value.is_empty())
    });
    builder
}

/// Finds the daemon again that was at `home`, and connects to it. Takes about that long at most.
pub(crate) fn redial(
    builder: &ClientBuilder,
    home: Home,
    patience: Duration,
) -> Result<Arc<Link>, Redialled> {
    let name = builder.name.as_deref().unwrap_or_default();
    let private = || Private::new(builder.socket.as_deref()).map_err(Redialled::Failed);
    let place = match home {
        Home::Named => builder.socket.clone().unwrap_or_default(),
        Home::System => PathBuf::from(SYSTEM_SOCKET),
        Home::User => autostart::folder_path().join(USER_SOCKET),
        Home::Private => private()?.socket().to_owned(),
    };
    let what = match dial(&place, name, patience).map_err(Redialled::Failed)? {
        Dialled::Connected(link) => return Ok(link),
        Dialled::NotPermitted => return Err(Redialled::Denied(not_permitted(&place))),
        Dialled::NobodyThere(what) | Dialled::Silent(what) => what,
    };
    let is_ours_to_start = match home {
        Home::Private => true,
        Home::Named => builder.autostart == Some(true),
        Home::System | Home::User => false,
    };
    if is_ours_to_start {
        return match autostart::start(&private()?, builder, name) {
            Ok(Some(link)) => Ok(link),
            Ok(None) => Err(Redialled::Absent(format!("{} (it ended again)", place.display()))),
            // The one before may still be on its way out, and hold the socket's lock until then.
            Err(error) => Err(Redialled::Absent(error.to_string())),
        };
    }
    Err(Redialled::Absent(format!("{} ({what})", place.display())))
}

/// Finds a daemon and connects to it.
pub(crate) fn connect(builder: &ClientBuilder) -> Result<(Arc<Link>, Home), Error> {
    let name = builder.name.as_deref().unwrap_or_default();
    let named = builder.socket.as_deref();
    let mut tried = Vec::new();
    for _ in 0..ROUNDS {
        tried.clear();
        for (place, home) in places(named) {
            match dial(&place, name, ANSWER_TIMEOUT)? {
                Dialled::Connected(link) => return Ok((link, home)),
                Dialled::Silent(what) => {
                    let place = place.display();
                    return Err(Error::unavailable(format!("the daemon at {place} does not answer: {what}")));
                }
                Dialled::NobodyThere(what) => tried.push(format!("{} ({what})", place.display())),
                Dialled::NotPermitted => return Err(not_permitted(&place)),
            }
        }
        if builder.autostart != Some(true) {
            break;
        }
        if let Some(link) = autostart::start(&Private::new(named)?, builder, name)? {
            return Ok((link, if named.is_some() { Home::Named } else { Home::Private }));
        }
    }
    Err(Error::unavailable(format!(
        "no reeld daemon answers; tried {}. Start one with `reeld serve`",
        tried.join(", ")
    )))
}

fn places(named: Option<&Path>) -> Vec<(PathBuf, Home)> {
    if let Some(named) = named {
        return vec![(named.to_owned(), Home::Named)];
    }
    let mut places = vec![(PathBuf::from(SYSTEM_SOCKET), Home::System)];
    if let Some(folder) = autostart::user_folder() {
        places.push((folder.join(USER_SOCKET), Home::User));
        // Somebody else of this user may have started it.
        places.push((folder.join(autostart::socket_name()), Home::Private));
    }
    places
}

fn not_permitted(place: &Path) -> Error {
    let place_text = place.display();
    Error::unavailable(if place == Path::new(SYSTEM_SOCKET) {
        format!(
            "no permission to use the system's reeld daemon at {place_text}: its users are the members of \
             the group `{GROUP}`. Ask the administrator to run `usermod -aG {GROUP} USER` and log in again, \
             or name another daemon with REELD_SOCKET"
        )
    } else {
        format!("no permission to connect to {place_text}")
    })
}

pub(crate) fn path_variable(name: &str) -> Option<PathBuf> {
    env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from)
}

fn program_name() -> String {
    let program = env::args_os().next().map(PathBuf::from);
    let name = program.as_deref().and_then(Path::file_name).unwrap_or(OsStr::new("client"));
    name.to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn system_daemon_without_permission_names_the_group() {
        let sentence = not_permitted(Path::new(SYSTEM_SOCKET)).to_string();
        assert!(sentence.contains("the group `reeld`") && sentence.contains(SYSTEM_SOCKET), "{sentence}");
    }

    #[test]
    fn named_socket_is_the_only_place() {
        assert_eq!(places(Some(Path::new("/a.sock"))), [(PathBuf::from("/a.sock"), Home::Named)]);
        assert_eq!(places(None)[0], (PathBuf::from(SYSTEM_SOCKET), Home::System));
    }

    #[test]
    fn homes_come_back_from_their_numbers() {
        for home in [Home::Named, Home::System, Home::User, Home::Private] {
            assert_eq!(Home::from_number(home as u8), home);
        }
    }
}
