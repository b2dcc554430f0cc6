//! The 16 bytes before each message. Frozen: every version of the protocol has this header.
//!
//! What the `kind` numbers mean is in [`crate::message`].

use crate::frame::FrameError;

/// Bytes of a header on the wire.
pub const HEADER_BYTES: usize = 16;

/// The largest body, in bytes. 64 KiB holds about 8,000 frame indices; longer lists travel in a memfd.
pub const BODY_BYTES_MAX: usize = 64 * 1024;

/// The most file descriptors with one message. The kernel's own limit is 253.
pub const FDS_MAX: usize = 16;

/// What stands before each message: `len u32 | kind u16 | fd_count u8 | flags u8 | request_id u64`,
/// little-endian.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Bytes of the body that follows, at most [`BODY_BYTES_MAX`].
    pub body_bytes: u32,
    /// What the body is.
    pub kind: u16,
    /// File descriptors that travel with this message, at most [`FDS_MAX`].
    pub fd_count: u8,
    /// Reserved: sent as 0, ignored when received.
    pub flags: u8,
    /// The request that this message is or answers; 0 for a notice, which is never answered.
    pub request_id: u64,
}

impl Header {
    /// The header's 16 bytes.
    pub fn to_bytes(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[0..4].copy_from_slice(&self.body_bytes.to_le_bytes());
        bytes[4..6].copy_from_slice(&self.kind.to_le_bytes());
        bytes[6] = self.fd_count;
        bytes[7] = self.flags;
        bytes[8..16].copy_from_slice(&self.request_id.to_le_bytes());
        bytes
    }

    /// Reads a header and checks its limits.
    pub fn from_bytes(bytes: &[u8; HEADER_BYTES]) -> Result<Header, FrameError> {
        let [l0, l1, l2, l3, k0, k1, fd_count, flags, id @ ..] = *bytes;
        let header = Header {
            body_bytes: u32::from_le_bytes([l0, l1, l2, l3]),
            kind: u16::from_le_bytes([k0, k1]),
            fd_count,
            flags,
            request_id: u64::from_le_bytes(id),
        };
        if header.body_bytes as usize > BODY_BYTES_MAX {
            return Err(FrameError::BodyTooLarge { bytes: header.body_bytes });
        }
        if usize::from(header.fd_count) > FDS_MAX {
            return Err(FrameError::TooManyFds { count: header.fd_count });
        }
        Ok(header)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn header_bytes_are_golden() {
        let header = Header { body_bytes: 0x0102, kind: 0x0020, fd_count: 3, flags: 0, request_id: 0x0A0B };
        let bytes = [2, 1, 0, 0, 0x20, 0, 3, 0, 0x0B, 0x0A, 0, 0, 0, 0, 0, 0];
        assert_eq!(header.to_bytes(), bytes);
        assert_eq!(Header::from_bytes(&bytes).unwrap(), header);
    }

    #[test]
    fn header_with_four_gib_body_is_refused() {
        let mut bytes = [0; HEADER_BYTES];
        bytes[..4].copy_from_slice(&u32::MAX.to_le_bytes());
        assert!(matches!(Header::from_bytes(&bytes), Err(FrameError::BodyTooLarge { .. })));
    }

    #[test]
    fn header_with_seventeen_fds_is_refused() {
        let mut bytes = [0; HEADER_BYTES];
        bytes[6] = 17;
        assert!(matches!(Header::from_bytes(&bytes), Err(FrameError::TooManyFds { count: 17 })));
    }
}
