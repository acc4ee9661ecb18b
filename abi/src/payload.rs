//! A C union as bytes: read or written as any of its members, without unsafe code.

use crate::arch::Pod;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// The bytes of a union of `N` bytes.
///
/// A member lies at the union's start. Reading one gives whatever the bytes say; writing one leaves the bytes behind
/// it as they are, as in C. A member that is larger than the union does not compile.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(transparent)]
pub struct Payload<const N: usize>(pub [u8; N]);

impl<const N: usize> Payload<N> {
    /// All bytes zero.
    pub const ZERO: Self = Self([0; N]);

    /// A union that holds this member, its other bytes zero.
    #[inline]
    pub fn of<T: Pod>(member: T) -> Self {
        let mut payload = Self::ZERO;
        payload.write(member);
        payload
    }

    /// The bytes, read as a member.
    #[inline]
    pub fn read<T: Pod>(&self) -> T {
        const { assert!(size_of::<T>() <= N, "the member is larger than the union") };
        let mut member = T::new_zeroed();
        member.as_mut_bytes().copy_from_slice(&self.0[..size_of::<T>()]);
        member
    }

    /// Writes a member over the bytes at the union's start.
    #[inline]
    pub fn write<T: Pod>(&mut self, member: T) {
        const { assert!(size_of::<T>() <= N, "the member is larger than the union") };
        self.0[..size_of::<T>()].copy_from_slice(member.as_bytes());
    }
}

impl<const N: usize> Default for Payload<N> {
    fn default() -> Self {
        Self::ZERO
    }
}
