//! [`Ticket`]: frames on their way to another process, as bytes.
//!
//! What it is worth is known to the daemon alone.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};

use reeld_protocol::codec;
use reeld_protocol::message::{self, PartLayout};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::error::Error;
use crate::fork::PerProcess;

/// The right to take over [`crate::Frames`] of another process of the same user, once, without a copy. Made by
/// [`crate::Frames::ticket`], redeemed by [`crate::Client::redeem`], and sent between processes as bytes, by
/// whatever way. Whoever has the bytes has the frames.
///
/// A ticket outlives the frames that it was made of. It holds until the process that made it has ended, and the
/// process that was named by [`Ticket::name_session`] too.
///
/// ```
/// # reeld_tests::enter_example_folder();
/// use reeld_client::{Client, Ticket, Video};
///
/// let frames = Video::open("clip.mp4")?.frames_at(&[3, 17])?;
/// let bytes = frames.ticket()?.to_bytes()?;
/// let pixels = frames.to_vec();
/// drop(frames);
///
/// // Perhaps in another process.
/// let client = Client::shared()?;
/// let frames = client.redeem(&Ticket::from_bytes(&bytes)?)?.wait()?;
/// assert_eq!(frames.to_vec(), pixels);
/// assert!(!frames.is_copied());
/// assert!(client.redeem(&Ticket::from_bytes(&bytes)?)?.wait().is_err());
/// # Ok::<(), reeld_client::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ticket {
    /// The daemon that issued it.
    pub(crate) instance: u128,
    pub(crate) number: message::Ticket,
    /// What lies in the slot, in the words of whoever made the ticket.
    pub(crate) parts: Vec<PartLayout>,
}

type Session = PerProcess<Mutex<Option<Arc<OwnedFd>>>>;

/// On whose behalf this process hands frames on.
static SESSION: Session = PerProcess::new();

impl Ticket {
    /// For sending.
    ///
    /// # Errors
    /// [`Error::InvalidRequest`] if the frames have more parts than fit into 64 KiB.
    pub fn to_bytes(&self) -> Result<Vec<u8>, Error> {
        codec::encode(&(self.instance, self.number, &self.parts)).map_err(|error| unfit(&error))
    }

    /// A ticket that was received.
    ///
    /// # Errors
    /// [`Error::InvalidRequest`] if these bytes are none.
    pub fn from_bytes(bytes: &[u8]) -> Result<Ticket, Error> {
        let (instance, number, parts) = codec::decode(bytes).map_err(|error| unfit(&error))?;
        Ok(Ticket { instance, number, parts })
    }

    /// Names the process for as long as which tickets of this process shall hold at least, so that they outlive
    /// this one: the one that is to redeem them, or the parent of both. It holds for connections that have not handed
    /// on anything yet. A forked child names its own.
    ///
    /// # Errors
    /// What the kernel says where there is no such process, or where it knows no pidfds. Then tickets hold as long
    /// as this process.
    pub fn name_session(process_id: u32) -> io::Result<()> {
        let pid = i32::try_from(process_id).ok().and_then(Pid::from_raw).ok_or(io::ErrorKind::NotFound)?;
        let process = Some(Arc::new(pidfd_open(pid, PidfdFlags::empty())?));
        *SESSION.get().lock().unwrap_or_else(PoisonError::into_inner) = process;
        Ok(())
    }
}

/// The process that was named.
pub(crate) fn session() -> Option<Arc<OwnedFd>> {
    SESSION.get().lock().unwrap_or_else(PoisonError::into_inner).clone()
}

fn unfit(error: &codec::CodecError) -> Error {
    Error::InvalidRequest(format!("these bytes are no ticket: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticket_comes_back_as_it_went_and_other_bytes_are_none() {
        let ticket = Ticket { instance: 7, number: message::Ticket([9; 32]), parts: Vec::new() };
        let bytes = ticket.to_bytes().unwrap();
        assert_eq!(Ticket::from_bytes(&bytes).unwrap(), ticket);
        for length in 0..bytes.len() {
            assert!(Ticket::from_bytes(&bytes[..length]).is_err());
        }
        assert!(Ticket::from_bytes(&[bytes, vec![0]].concat()).is_err());
    }
}
