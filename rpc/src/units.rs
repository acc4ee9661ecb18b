//! Quantities with their units in the type.

use core::fmt;
use serde::{Deserialize, Serialize};

macro_rules! unit {
    ($(#[$doc:meta])* $name:ident($inner:ty), $suffix:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!("{} ", $suffix), self.0)
            }
        }
    };
}

unit!(
    /// Memory, in KiB (1024 bytes). A frame is 4.
    Kib(u64),
    "KiB"
);
unit!(
    /// A span of time, or a point in the time since the host was started, in nanoseconds.
    Nanos(u64),
    "ns"
);
unit!(
    /// A span of time in microseconds.
    Micros(u64),
    "us"
);
unit!(
    /// A span of time in milliseconds.
    Millis(u64),
    "ms"
);

/// How long a call may take, in milliseconds from its arrival; a [`Note`](crate::Note) to it begins that anew. Zero has
/// passed already, so such a call is only looked at for whether it could be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Deadline(pub u32);

impl Deadline {
    /// The longest there is, 10 minutes; what is longer counts as this.
    pub const MAX: Self = Self(600_000);
}
