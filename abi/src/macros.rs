//! The crate's own macros: compile-time layout checks, numbered enums and newtypes.

/// Asserts at compile time that a type has the given size and its fields the given offsets.
///
/// `layout!(Type: SIZE { field: OFFSET, ... })`, sizes and offsets in bytes.
macro_rules! layout {
    ($type:ty : $size:literal { $($($field:ident).+ : $offset:expr),* $(,)? }) => {
        const _: () = {
            assert!(core::mem::size_of::<$type>() == $size, concat!("size of ", stringify!($type)));
            assert!(core::mem::align_of::<$type>() == 1, concat!("alignment of ", stringify!($type)));
            $(assert!(
                core::mem::offset_of!($type, $($field).+) == $offset,
                concat!("offset of ", stringify!($type), ".", stringify!($($field).+))
            );)*
        };
    };
}

/// Declares an enum of the interface's numbers, with safe conversion from the raw number.
macro_rules! numbers {
    (
        $(#[$meta:meta])*
        pub enum $name:ident : $repr:ty {
            $($(#[$vmeta:meta])* $variant:ident = $value:literal),+ $(,)?
        }
    ) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr($repr)]
        pub enum $name {
            $($(#[$vmeta])* $variant = $value),+
        }

        impl $name {
            /// Every value, in the order of declaration.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// The number as it crosses the interface.
            #[inline]
            pub const fn raw(self) -> $repr {
                self as $repr
            }

            /// The value that this number stands for, if it stands for one.
            #[inline]
            pub const fn from_raw(raw: $repr) -> Option<Self> {
                match raw {
                    $($value => Some(Self::$variant),)+
                    _ => None,
                }
            }
        }

        impl TryFrom<$repr> for $name {
            type Error = $crate::errno::UnknownValue;

            #[inline]
            fn try_from(raw: $repr) -> Result<Self, $crate::errno::UnknownValue> {
                Self::from_raw(raw).ok_or($crate::errno::UnknownValue)
            }
        }

        impl From<$name> for $repr {
            #[inline]
            fn from(value: $name) -> Self {
                value.raw()
            }
        }
    };
}

/// Declares a transparent newtype over an integer of the interface.
macro_rules! newtype {
    ($(#[$meta:meta])* pub struct $name:ident($repr:ty);) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[derive(zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::Immutable, zerocopy::KnownLayout)]
        #[repr(transparent)]
        pub struct $name(pub $repr);

        impl $name {
            /// Wraps a raw number.
            #[inline]
            pub const fn new(raw: $repr) -> Self {
                Self(raw)
            }

            /// The raw number.
            #[inline]
            pub const fn raw(self) -> $repr {
                self.0
            }
        }

        impl From<$repr> for $name {
            #[inline]
            fn from(raw: $repr) -> Self {
                Self(raw)
            }
        }

        impl From<$name> for $repr {
            #[inline]
            fn from(value: $name) -> Self {
                value.0
            }
        }

        impl core::fmt::Debug for $name {
            fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
                write!(f, concat!(stringify!($name), "({:#x})"), self.0)
            }
        }

        impl core::fmt::Display for $name {
            fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
                core::fmt::Display::fmt(&self.0, f)
            }
        }

        impl core::fmt::LowerHex for $name {
            fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
                core::fmt::LowerHex::fmt(&self.0, f)
            }
        }
    };
}
