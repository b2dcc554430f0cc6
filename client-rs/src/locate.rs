//! Where daemons may be, in which order they are tried, and what is said where none answers.
//!
//! How one is started is in `autostart.rs`.

use std::env;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::autostart::{self, Private};
use crate::client::ClientBuilder;
use crate::error::Error;
use crate::handshake::{Dialled, dial};
use crate::link::Link;

/// Where the system's daemon listens.
const SYSTEM_SOCKET: &str = "/run/reeld/reeld.sock";

/// The group whose members may use the system's daemon.
const GROUP: &str = "reeld";

/// How often all places are tried: a private daemon may end between its start and our connecting.
const ROUNDS: u32 = 3;

/// Finds a daemon and connects to it.
pub(crate) fn connect(builder: &ClientBuilder) -> Result<Arc<Link>, Error> {
    let name = builder.name.clone().unwrap_or_else(program_name);
    let named = builder.socket.clone().or_else(|| path_variable("REELD_SOCKET"));
    let is_autostarted = builder.autostart.unwrap_or_else(|| {
        named.is_none() && env::var_os("REELD_NO_AUTOSTART").is_none_or(|value| value.is_empty())
    });
    let mut tried = Vec::new();
    for _ in 0..ROUNDS {
        tried.clear();
        for place in places(named.as_deref()) {
            match dial(&place, &name)? {
                Dialled::Connected(link) => return Ok(link),
                Dialled::NobodyThere(what) => tried.push(format!("{} ({what})", place.display())),
                Dialled::NotPermitted => return Err(not_permitted(&place)),
            }
        }
        if !is_autostarted {
            break;
        }
        let private = Private::new(named.as_deref())?;
        if let Some(link) = autostart::start(&private, builder, &name)? {
            return Ok(link);
        }
    }
    Err(Error::unavailable(format!(
        "no reeld daemon answers; tried {}. Start one with `reeld serve`",
        tried.join(", ")
    )))
}

fn places(named: Option<&Path>) -> Vec<PathBuf> {
    if let Some(named) = named {
        return vec![named.to_owned()];
    }
    let mut places = vec![PathBuf::from(SYSTEM_SOCKET)];
    if let Some(folder) = autostart::user_folder() {
        places.push(folder.join("reeld.sock"));
        // Somebody else of this user may have started it.
        places.push(folder.join(autostart::socket_name()));
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
        assert_eq!(places(Some(Path::new("/a.sock"))), [PathBuf::from("/a.sock")]);
        assert_eq!(places(None)[0], Path::new(SYSTEM_SOCKET));
    }
}
