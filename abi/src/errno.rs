//! Error numbers. A failed call returns one of them negated, in the register that holds its result.

use crate::GuestWord;

numbers! {
    /// The error numbers that calls of the interface return, negated. The values are the Linux ones.
    pub enum Errno: u32 {
        /// The caller lacks the privilege.
        EPERM = 1,
        /// No such thing.
        ENOENT = 2,
        /// No such domain.
        ESRCH = 3,
        /// Interrupted.
        EINTR = 4,
        /// Input or output failed.
        EIO = 5,
        /// No such device or address.
        ENXIO = 6,
        /// Argument list too long.
        E2BIG = 7,
        /// Try again.
        EAGAIN = 11,
        /// Out of memory.
        ENOMEM = 12,
        /// The interface version does not match.
        EACCES = 13,
        /// A pointer leads nowhere the caller may read or write.
        EFAULT = 14,
        /// In use.
        EBUSY = 16,
        /// Exists already.
        EEXIST = 17,
        /// No such device.
        ENODEV = 19,
        /// An argument is not valid.
        EINVAL = 22,
        /// No space left: every port, or every entry, is taken.
        ENOSPC = 28,
        /// The number is out of range.
        ERANGE = 34,
        /// No such call or command.
        ENOSYS = 38,
        /// There are no data of that kind.
        ENODATA = 61,
    }
}

impl Errno {
    /// The result a call returns for this error: the number, negated.
    #[inline]
    pub const fn to_result(self) -> i64 {
        -(self as i64)
    }

    /// The result a call returns for this error, in a guest's register.
    #[inline]
    pub fn to_word<W: GuestWord>(self) -> W {
        W::from_u64_truncating(self.to_result() as u64)
    }

    /// The error in a call's signed result, if it is one of these.
    #[inline]
    pub const fn from_result(result: i64) -> Option<Self> {
        if result < 0 && result > -4096 { Self::from_raw(-result as u32) } else { None }
    }
}

impl core::fmt::Display for Errno {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{self:?}")
    }
}

impl core::error::Error for Errno {}

/// A raw number that stands for no value of the enum it was to be converted to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnknownValue;

impl core::fmt::Display for UnknownValue {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("the number stands for no value of the interface")
    }
}

impl core::error::Error for UnknownValue {}
