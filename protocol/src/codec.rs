//! The encoding of message bodies. The only module that knows which library does it, so that the format
//! can be exchanged in one place.
//!
//! bincode 2.0.1: little-endian, variable-length integers, enum variants by number. Always with a limit,
//! so that a length prefix cannot make us reserve memory, and a body must be consumed whole. The handshake
//! does not use it: its bytes are written by hand in [`crate::handshake`].

pub use bincode::{Decode, Encode};

use crate::header::BODY_BYTES_MAX;

/// What a body may take in memory once it is decoded, which is what bincode's limit counts. A list element
/// of one byte on the wire takes 8 to 56 bytes; 16 bodies hold every list that fits into one.
const DECODED_BYTES_MAX: usize = 16 * BODY_BYTES_MAX;

type Config = bincode::config::Configuration<
    bincode::config::LittleEndian,
    bincode::config::Varint,
    bincode::config::Limit<DECODED_BYTES_MAX>,
>;

const CONFIG: Config = bincode::config::standard().with_limit::<DECODED_BYTES_MAX>();

/// Why a body could not be encoded or decoded.
#[derive(Debug, thiserror::Error)]
pub enum CodecError {
    /// The value does not fit into one body.
    #[error("the message does not fit into {BODY_BYTES_MAX} bytes")]
    TooLarge,
    /// The bytes are not a message of the expected kind.
    #[error("malformed message body: {reason}")]
    Malformed {
        /// What the decoder found.
        reason: String,
    },
    /// Bytes were left over behind the message.
    #[error("{count} surplus bytes after the message body")]
    Surplus {
        /// How many bytes were left over.
        count: usize,
    },
}

/// Encodes a body.
pub fn encode<T: Encode>(value: &T) -> Result<Vec<u8>, CodecError> {
    let bytes = bincode::encode_to_vec(value, CONFIG).map_err(|_| CodecError::TooLarge)?;
    if bytes.len() > BODY_BYTES_MAX {
        return Err(CodecError::TooLarge);
    }
    Ok(bytes)
}

/// Decodes a body, all of it.
pub fn decode<T: Decode<()>>(bytes: &[u8]) -> Result<T, CodecError> {
    let (value, consumed) = bincode::decode_from_slice(bytes, CONFIG)
        .map_err(|error| CodecError::Malformed { reason: error.to_string() })?;
    if consumed != bytes.len() {
        return Err(CodecError::Surplus { count: bytes.len() - consumed });
    }
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn surplus_byte_is_refused() {
        let mut bytes = encode(&(1u32, String::from("a"))).unwrap();
        bytes.push(9);
        assert!(matches!(decode::<(u32, String)>(&bytes), Err(CodecError::Surplus { count: 1 })));
    }

    #[test]
    fn huge_length_prefix_is_refused_without_reserving() {
        let bytes = [0xFD, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF];
        assert!(matches!(decode::<Vec<u64>>(&bytes), Err(CodecError::Malformed { .. })));
    }

    #[test]
    fn longest_list_of_small_numbers_fits_into_a_body() {
        let leases: Vec<u64> = vec![7; BODY_BYTES_MAX - 3];
        assert_eq!(decode::<Vec<u64>>(&encode(&leases).unwrap()).unwrap(), leases);
    }

    #[test]
    fn body_over_the_limit_is_refused_when_encoding() {
        assert!(matches!(encode(&vec![0u8; BODY_BYTES_MAX + 1]), Err(CodecError::TooLarge)));
    }
}
