//! Messages as frames of a byte stream.
//!
//! A frame is a message in postcard and the CRC-32 of that (little endian), both in COBS, which leaves no zero byte,
//! and a zero byte behind. So whoever lost the thread finds it again at the next zero.
//!
//! Promises: any bytes are read without a panic and with at most [`MAX_FRAME`] bytes kept; each frame that is not a
//! message is reported once; after a zero byte the next frame is read whatever came before.

use alloc::vec;
use alloc::vec::Vec;
use core::fmt;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::{Checksum, MAX_FRAME, MAX_MESSAGE};

/// Why a frame is no message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameError {
    /// It is longer than [`MAX_FRAME`], or the message than [`MAX_MESSAGE`].
    TooLong,
    /// It is not COBS, or too short for a CRC.
    Malformed,
    /// The CRC is another.
    Damaged,
    /// It arrived whole, and is none of the messages, or longer than one.
    Unknown,
}

impl fmt::Display for FrameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::TooLong => "the frame is too long",
            Self::Malformed => "the frame is malformed",
            Self::Damaged => "the frame is damaged",
            Self::Unknown => "the frame holds no message that is known",
        })
    }
}

impl core::error::Error for FrameError {}

/// A message as a frame, its zero byte included.
///
/// # Errors
/// [`FrameError::TooLong`]. With bounded fields, as all messages of this crate have, that takes more of them than any
/// message needs.
pub fn encode<T: Serialize>(message: &T) -> Result<Vec<u8>, FrameError> {
    let mut plain = postcard::to_allocvec(message).map_err(|_| FrameError::Unknown)?;
    if plain.len() > MAX_MESSAGE {
        return Err(FrameError::TooLong);
    }
    let Checksum(sum) = Checksum::of(&plain);
    plain.extend(sum.to_le_bytes());
    let mut frame = vec![0; cobs::max_encoding_length(plain.len()) + 1];
    let len = cobs::encode(&plain, &mut frame);
    frame.truncate(len + 1);
    frame[len] = 0;
    Ok(frame)
}

/// The bytes of a frame without its zero as those of a message.
fn unpack(mut frame: Vec<u8>) -> Result<Vec<u8>, FrameError> {
    let len = cobs::decode_in_place(&mut frame).map_err(|_| FrameError::Malformed)?;
    frame.truncate(len);
    let (message, sum) = frame.split_last_chunk::<4>().ok_or(FrameError::Malformed)?;
    if Checksum::of(message) != Checksum(u32::from_le_bytes(*sum)) {
        return Err(FrameError::Damaged);
    }
    let len = message.len();
    frame.truncate(len);
    Ok(frame)
}

/// The bytes of a whole message as that.
pub(crate) fn parse<T: DeserializeOwned>(message: &[u8]) -> Result<T, FrameError> {
    match postcard::take_from_bytes(message) {
        Ok((message, [])) => Ok(message),
        _ => Err(FrameError::Unknown),
    }
}

/// Cuts a stream into frames.
#[derive(Clone, Debug, Default)]
pub struct Decoder {
    /// What has come of the frame so far; at most [`MAX_FRAME`] bytes.
    begun: Vec<u8>,
    /// More than that has come.
    is_too_long: bool,
}

impl Decoder {
    /// At the beginning of a stream, or behind a zero.
    pub const fn new() -> Self {
        Self { begun: Vec::new(), is_too_long: false }
    }

    /// Takes bytes from the front of `input` up to the end of a frame. `None` if there was no end in them; then all are
    /// taken. Empty frames are passed over: zeros may stand anywhere.
    pub fn next<T: DeserializeOwned>(&mut self, input: &mut &[u8]) -> Option<Result<T, FrameError>> {
        self.next_frame(input).map(|frame| parse(&frame?))
    }

    /// The same for whoever wants to look at what is no message either: the bytes of one that arrived whole.
    pub fn next_frame(&mut self, input: &mut &[u8]) -> Option<Result<Vec<u8>, FrameError>> {
        loop {
            let Some(end) = input.iter().position(|&byte| byte == 0) else {
                self.take(input);
                *input = &[];
                return None;
            };
            self.take(&input[..end]);
            *input = &input[end + 1..];
            let frame = core::mem::take(&mut self.begun);
            let is_too_long = core::mem::take(&mut self.is_too_long);
            if is_too_long {
                return Some(Err(FrameError::TooLong));
            }
            if !frame.is_empty() {
                return Some(unpack(frame));
            }
        }
    }

    fn take(&mut self, bytes: &[u8]) {
        if self.is_too_long || self.begun.len() + bytes.len() > MAX_FRAME {
            self.is_too_long = true;
            self.begun = Vec::new();
        } else {
            self.begun.extend_from_slice(bytes);
        }
    }
}
