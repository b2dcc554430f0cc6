//! The numbers that name things on the wire, each a type of its own, so that one is never taken for
//! another. What a number refers to is known to the daemon alone.

use crate::codec::{Decode, Encode};

macro_rules! id {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
        pub struct $name(pub $inner);

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

id!(
    /// Names a request within its connection. Chosen by the client, never 0, never reused.
    RequestId(u64)
);
id!(
    /// Names an open source within its connection. Chosen by the daemon.
    SourceId(u64)
);
id!(
    /// Names an arena within its connection. Chosen by the daemon, never reused.
    ArenaId(u32)
);
id!(
    /// Names the right to one slot. Chosen by the daemon, never reused within its lifetime.
    LeaseId(u64)
);
id!(
    /// The absolute index of a stream in its container, as FFmpeg counts.
    StreamIndex(u32)
);
id!(
    /// The position of a frame in presentation order, from 0.
    FrameIndex(u64)
);
