//! Texts, bytes and lists with an upper bound.
//!
//! They promise that a value is never longer than its type says, whether it was made here or came in a message: reading
//! one that is longer fails. So nobody behind the decoder checks a length again.

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;
use core::ops::Deref;
use serde::de::{Error as _, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Something is longer than its bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooLong {
    /// How long it is: bytes, or entries.
    pub len: usize,
    /// How long it may be.
    pub max: usize,
}

impl fmt::Display for TooLong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} is more than the {} that are allowed", self.len, self.max)
    }
}

impl core::error::Error for TooLong {}

const fn fits(len: usize, max: usize) -> Result<(), TooLong> {
    if len > max { Err(TooLong { len, max }) } else { Ok(()) }
}

/// UTF-8 of at most `N` bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct Text<const N: usize>(String);

impl<const N: usize> Text<N> {
    /// A text, or that it is too long.
    ///
    /// # Errors
    /// [`TooLong`].
    pub fn new(text: &str) -> Result<Self, TooLong> {
        fits(text.len(), N)?;
        Ok(Self(text.into()))
    }

    /// As much of the beginning as fits, cut between characters.
    pub fn cut(text: &str) -> Self {
        let end = (0..=N.min(text.len())).rev().find(|&end| text.is_char_boundary(end)).unwrap_or(0);
        Self(text[..end].into())
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl<const N: usize> Deref for Text<N> {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl<const N: usize> fmt::Display for Text<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl<'de, const N: usize> Deserialize<'de> for Text<N> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        Self::new(<&str>::deserialize(from)?).map_err(D::Error::custom)
    }
}

/// At most `N` bytes.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Bytes<const N: usize>(Vec<u8>);

impl<const N: usize> Bytes<N> {
    /// These bytes, or that they are too many.
    ///
    /// # Errors
    /// [`TooLong`].
    pub fn new(bytes: impl Into<Vec<u8>>) -> Result<Self, TooLong> {
        let bytes = bytes.into();
        fits(bytes.len(), N)?;
        Ok(Self(bytes))
    }

    /// The bytes as a vector.
    pub fn into_vec(self) -> Vec<u8> {
        self.0
    }
}

impl<const N: usize> Deref for Bytes<N> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl<const N: usize> fmt::Debug for Bytes<N> {
    /// Their number: they are rarely what one wants to read.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.0.len())
    }
}

impl<const N: usize> Serialize for Bytes<N> {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_bytes(&self.0)
    }
}

impl<'de, const N: usize> Deserialize<'de> for Bytes<N> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        Self::new(<&[u8]>::deserialize(from)?).map_err(D::Error::custom)
    }
}

/// At most `N` entries.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct List<T, const N: usize>(Vec<T>);

impl<T, const N: usize> List<T, N> {
    /// An empty list.
    pub const fn empty() -> Self {
        Self(Vec::new())
    }

    /// These entries, or that they are too many.
    ///
    /// # Errors
    /// [`TooLong`].
    pub fn new(entries: Vec<T>) -> Result<Self, TooLong> {
        fits(entries.len(), N)?;
        Ok(Self(entries))
    }

    /// Puts one more behind the others.
    ///
    /// # Errors
    /// [`TooLong`]; the list is as it was.
    pub fn push(&mut self, entry: T) -> Result<(), TooLong> {
        fits(self.0.len() + 1, N)?;
        self.0.push(entry);
        Ok(())
    }

    /// The entries as a vector.
    pub fn into_vec(self) -> Vec<T> {
        self.0
    }
}

impl<T, const N: usize> Default for List<T, N> {
    fn default() -> Self {
        Self::empty()
    }
}

impl<T, const N: usize> Deref for List<T, N> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &self.0
    }
}

impl<'de, T: Deserialize<'de>, const N: usize> Deserialize<'de> for List<T, N> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Entries<T, const N: usize>(core::marker::PhantomData<T>);

        impl<'de, T: Deserialize<'de>, const N: usize> Visitor<'de> for Entries<T, N> {
            type Value = Vec<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "at most {N} entries")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Vec<T>, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = seq.next_element()? {
                    fits(entries.len() + 1, N).map_err(A::Error::custom)?;
                    entries.push(entry);
                }
                Ok(entries)
            }
        }

        from.deserialize_seq(Entries::<T, N>(core::marker::PhantomData)).map(Self)
    }
}
