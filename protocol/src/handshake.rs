//! The first messages of a connection, coded by hand, so that peers of any version can read them and say
//! a sentence that a person understands.
//!
//! What follows the handshake is in [`crate::message`].

use crate::frame::FrameError;

/// The first eight bytes of each handshake body.
pub const MAGIC: [u8; 8] = *b"REELD\r\n\x01";

/// The longest text in a handshake message, in bytes.
pub const TEXT_BYTES_MAX: usize = 1024;

/// The client's first message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    /// The major version that the client speaks.
    pub major: u16,
    /// The oldest minor version that it accepts.
    pub minor_min: u16,
    /// The newest minor version that it speaks.
    pub minor_max: u16,
    /// Optional abilities, one bit each; none is defined yet.
    pub features: u64,
    /// What logs call the client, such as `python 1234`.
    pub name: String,
}

/// The daemon's answer to a Hello that it accepts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Welcome {
    /// The daemon's major version.
    pub major: u16,
    /// The minor version that both sides use from here on.
    pub minor: u16,
    /// The optional abilities that both sides have.
    pub features: u64,
    /// A random number per start of the daemon: names from another instance mean nothing to this one.
    pub instance: u128,
    /// The most bytes that this client's arenas may have.
    pub quota_bytes: u64,
    /// Requests that the daemon reads before it waits for answers to go out.
    pub requests_max: u32,
    /// The daemon's name and version.
    pub daemon: String,
    /// The versions of its FFmpeg libraries.
    pub ffmpeg: String,
}

/// The daemon's answer to a Hello that it does not accept; it closes the connection after it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The daemon's major version.
    pub major: u16,
    /// The daemon's newest minor version.
    pub minor: u16,
    /// Why, and what to do.
    pub reason: String,
    /// What kind of reason it is.
    pub cause: RefusalCause,
}

/// Why a daemon refuses a connection: one number per thing that a client would do differently. Append only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum RefusalCause {
    /// It does not speak the client's version.
    Version = 0,
    /// As many clients as are allowed are connected.
    Limit = 1,
}

impl Hello {
    /// The body's bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        bytes.extend(self.major.to_le_bytes());
        bytes.extend(self.minor_min.to_le_bytes());
        bytes.extend(self.minor_max.to_le_bytes());
        bytes.extend(self.features.to_le_bytes());
        put_text(&mut bytes, &self.name);
        bytes
    }

    /// Reads a body. Bytes behind the known fields are ignored: a later version may add some.
    pub fn from_bytes(bytes: &[u8]) -> Result<Hello, FrameError> {
        let mut fields = Fields::new(bytes)?;
        Ok(Hello {
            major: u16::from_le_bytes(fields.take()?),
            minor_min: u16::from_le_bytes(fields.take()?),
            minor_max: u16::from_le_bytes(fields.take()?),
            features: u64::from_le_bytes(fields.take()?),
            name: fields.text()?,
        })
    }
}

impl Welcome {
    /// The body's bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        bytes.extend(self.major.to_le_bytes());
        bytes.extend(self.minor.to_le_bytes());
        bytes.extend(self.features.to_le_bytes());
        bytes.extend(self.instance.to_le_bytes());
        bytes.extend(self.quota_bytes.to_le_bytes());
        bytes.extend(self.requests_max.to_le_bytes());
        put_text(&mut bytes, &self.daemon);
        put_text(&mut bytes, &self.ffmpeg);
        bytes
    }

    /// Reads a body; see [`Hello::from_bytes`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Welcome, FrameError> {
        let mut fields = Fields::new(bytes)?;
        Ok(Welcome {
            major: u16::from_le_bytes(fields.take()?),
            minor: u16::from_le_bytes(fields.take()?),
            features: u64::from_le_bytes(fields.take()?),
            instance: u128::from_le_bytes(fields.take()?),
            quota_bytes: u64::from_le_bytes(fields.take()?),
            requests_max: u32::from_le_bytes(fields.take()?),
            daemon: fields.text()?,
            ffmpeg: fields.text()?,
        })
    }
}

impl RefusalCause {
    fn from_number(number: u8) -> RefusalCause {
        match number {
            1 => RefusalCause::Limit,
            // What a later version refuses for is in its sentence.
            _ => RefusalCause::Version,
        }
    }
}

impl Refusal {
    /// The body's bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        bytes.extend(self.major.to_le_bytes());
        bytes.extend(self.minor.to_le_bytes());
        put_text(&mut bytes, &self.reason);
        bytes.push(self.cause as u8);
        bytes
    }

    /// Reads a body; see [`Hello::from_bytes`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Refusal, FrameError> {
        let mut fields = Fields::new(bytes)?;
        Ok(Refusal {
            major: u16::from_le_bytes(fields.take()?),
            minor: u16::from_le_bytes(fields.take()?),
            reason: fields.text()?,
            cause: fields.take().map_or(RefusalCause::Version, |[number]| RefusalCause::from_number(number)),
        })
    }
}

/// A text is `length u16 | UTF-8`, cut at [`TEXT_BYTES_MAX`].
fn put_text(bytes: &mut Vec<u8>, text: &str) {
    let mut end = text.len().min(TEXT_BYTES_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    bytes.extend((end as u16).to_le_bytes());
    bytes.extend(&text.as_bytes()[..end]);
}

/// Reads fields one after the other.
struct Fields<'a> {
    rest: &'a [u8],
}

impl<'a> Fields<'a> {
    fn new(bytes: &'a [u8]) -> Result<Self, FrameError> {
        let rest = bytes.strip_prefix(&MAGIC).ok_or(FrameError::NotReeld)?;
        Ok(Fields { rest })
    }

    fn take<const N: usize>(&mut self) -> Result<[u8; N], FrameError> {
        let (field, rest) = self.rest.split_first_chunk().ok_or(FrameError::HandshakeTooShort)?;
        self.rest = rest;
        Ok(*field)
    }

    fn text(&mut self) -> Result<String, FrameError> {
        let length = usize::from(u16::from_le_bytes(self.take()?));
        if length > TEXT_BYTES_MAX || length > self.rest.len() {
            return Err(FrameError::HandshakeTooShort);
        }
        let (text, rest) = self.rest.split_at(length);
        self.rest = rest;
        Ok(String::from_utf8_lossy(text).into_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hello() -> Hello {
        Hello { major: 1, minor_min: 0, minor_max: 2, features: 5, name: "py".into() }
    }

    #[test]
    fn hello_bytes_are_golden() {
        let expected = [
            b'R', b'E', b'E', b'L', b'D', 13, 10, 1, 1, 0, 0, 0, 2, 0, 5, 0, 0, 0, 0, 0, 0, 0, 2, 0, b'p',
            b'y',
        ];
        assert_eq!(hello().to_bytes(), expected);
        assert_eq!(Hello::from_bytes(&expected).unwrap(), hello());
    }

    #[test]
    fn welcome_and_refusal_come_back_as_they_went() {
        let welcome = Welcome {
            major: 1,
            minor: 0,
            features: 0,
            instance: 7 << 90,
            quota_bytes: 1 << 30,
            requests_max: 64,
            daemon: "reeld 0.1.0".into(),
            ffmpeg: "libavcodec 59".into(),
        };
        assert_eq!(Welcome::from_bytes(&welcome.to_bytes()).unwrap(), welcome);
        let refusal = Refusal { major: 2, minor: 1, reason: "ü".repeat(2000), cause: RefusalCause::Limit };
        let read = Refusal::from_bytes(&refusal.to_bytes()).unwrap();
        assert_eq!((read.reason, read.cause), ("ü".repeat(512), RefusalCause::Limit));
    }

    #[test]
    fn fields_of_a_later_version_are_ignored() {
        let mut bytes = hello().to_bytes();
        bytes.extend([1, 2, 3]);
        assert_eq!(Hello::from_bytes(&bytes).unwrap(), hello());
    }

    #[test]
    fn every_cut_hello_is_an_error() {
        let bytes = hello().to_bytes();
        for length in 0..bytes.len() {
            assert!(Hello::from_bytes(&bytes[..length]).is_err());
        }
    }
}
