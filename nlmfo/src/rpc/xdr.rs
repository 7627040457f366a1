//! The part of XDR (RFC 4506) that NLM, NSM, rpcbind and `EXCHANGE_ID` need.
//!
//! Everything is big-endian in units of four bytes; opaques and strings carry
//! their length in front and are padded with zeros.

mod error;

use bytes::{BufMut, BytesMut};

pub(crate) use error::Error;

/// Writes XDR items one after the other.
#[derive(Debug, Default)]
pub struct Encoder {
    buffer: BytesMut,
}

impl Encoder {
    /// An unsigned integer.
    pub fn u32(&mut self, value: u32) {
        self.buffer.put_u32(value);
    }

    /// An unsigned hyper integer.
    pub fn u64(&mut self, value: u64) {
        self.buffer.put_u64(value);
    }

    /// A boolean: one word, 1 or 0.
    pub fn bool(&mut self, value: bool) {
        self.u32(value.into());
    }

    /// Bytes whose number both sides know: no length in front.
    pub fn fixed(&mut self, bytes: &[u8]) {
        self.buffer.put_slice(bytes);
        self.buffer.put_bytes(0, padding(bytes.len()));
    }

    /// Bytes (or a string) with their length in front. `max` is the protocol's
    /// limit, `what` names the field in the error.
    ///
    /// # Errors
    /// If there are more than `max` bytes; nothing is written.
    pub fn opaque(&mut self, what: &'static str, bytes: &[u8], max: usize) -> Result<(), Error> {
        match u32::try_from(bytes.len()) {
            Ok(length) if bytes.len() <= max => {
                self.u32(length);
                self.fixed(bytes);
                Ok(())
            }
            _ => Err(Error::TooLong {
                what,
                length: bytes.len(),
                max,
            }),
        }
    }

    /// The message as written so far.
    pub fn finish(self) -> BytesMut {
        self.buffer
    }
}

/// Reads XDR items one after the other; never beyond the message, and never more
/// than the limit that the caller states.
#[derive(Debug)]
pub struct Decoder<'a> {
    rest: &'a [u8],
}

impl<'a> Decoder<'a> {
    /// Reads from the first byte of `message`.
    pub fn new(message: &'a [u8]) -> Self {
        Decoder { rest: message }
    }

    /// An unsigned integer; `what` names the field in the error.
    ///
    /// # Errors
    /// If the message ends inside it.
    pub fn u32(&mut self, what: &'static str) -> Result<u32, Error> {
        Ok(u32::from_be_bytes(self.array(what)?))
    }

    /// An unsigned hyper integer.
    ///
    /// # Errors
    /// If the message ends inside it.
    pub fn u64(&mut self, what: &'static str) -> Result<u64, Error> {
        Ok(u64::from_be_bytes(self.array(what)?))
    }

    /// Any non-zero word is true, as in the kernel's `xdr_stream_decode_bool`.
    ///
    /// # Errors
    /// If the message ends inside it.
    pub fn bool(&mut self, what: &'static str) -> Result<bool, Error> {
        Ok(self.u32(what)? != 0)
    }

    /// Bytes (or a string) with their length in front, at most `max`.
    ///
    /// # Errors
    /// If the length exceeds `max`, or the message ends inside them.
    pub fn opaque(&mut self, what: &'static str, max: usize) -> Result<&'a [u8], Error> {
        let length = self.u32(what)? as usize;
        if length > max {
            return Err(Error::TooLong { what, length, max });
        }
        let bytes = self.take(what, length)?;
        self.take(what, padding(length))?;
        Ok(bytes)
    }

    /// States that the message ends here.
    ///
    /// # Errors
    /// If bytes are left.
    pub fn finish(self) -> Result<(), Error> {
        match self.rest.len() {
            0 => Ok(()),
            extra => Err(Error::Trailing { extra }),
        }
    }

    fn array<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N], Error> {
        let bytes = self.take(what, N)?;
        Ok(bytes
            .try_into()
            .expect("take returns as many bytes as asked for"))
    }

    fn take(&mut self, what: &'static str, length: usize) -> Result<&'a [u8], Error> {
        let (taken, rest) = self.rest.split_at_checked(length).ok_or(Error::Short {
            what,
            wanted: length,
            left: self.rest.len(),
        })?;
        self.rest = rest;
        Ok(taken)
    }
}

/// Zero bytes that follow an opaque of this length.
fn padding(length: usize) -> usize {
    length.wrapping_neg() % 4
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn opaque_is_length_bytes_and_zero_padding() {
        let mut encoder = Encoder::default();
        encoder.opaque("name", b"vip01", 8).unwrap();
        assert_eq!(&encoder.finish()[..], b"\0\0\0\x05vip01\0\0\0");
    }

    #[test]
    fn limits_hold_in_both_directions() {
        let mut encoder = Encoder::default();
        let too_long = Error::TooLong {
            what: "cookie",
            length: 9,
            max: 8,
        };
        assert_eq!(encoder.opaque("cookie", &[0; 9], 8), Err(too_long));
        encoder.opaque("cookie", &[0; 9], 9).unwrap();
        let message = encoder.finish();
        assert_eq!(Decoder::new(&message).opaque("cookie", 8), Err(too_long));
    }

    #[test]
    fn a_length_that_lies_is_an_error_and_not_a_panic() {
        let error = Decoder::new(b"\0\0\x03\xffabcd").opaque("name", 1024);
        assert_eq!(
            error,
            Err(Error::Short {
                what: "name",
                wanted: 1023,
                left: 4
            })
        );
    }

    #[test]
    fn padding_that_is_cut_off_is_an_error() {
        let error = Decoder::new(b"\0\0\0\x01a").opaque("name", 4);
        assert_eq!(
            error,
            Err(Error::Short {
                what: "name",
                wanted: 3,
                left: 0
            })
        );
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(
            words in any::<(u32, u64, bool)>(),
            bytes in prop::collection::vec(any::<u8>(), 0..70),
            text in ".{0,20}",
        ) {
            let mut encoder = Encoder::default();
            encoder.u32(words.0);
            encoder.opaque("bytes", &bytes, 70).unwrap();
            encoder.u64(words.1);
            encoder.opaque("text", text.as_bytes(), 100).unwrap();
            encoder.bool(words.2);
            let message = encoder.finish();
            prop_assert_eq!(message.len() % 4, 0);

            let mut decoder = Decoder::new(&message);
            prop_assert_eq!(decoder.u32("u32").unwrap(), words.0);
            prop_assert_eq!(decoder.opaque("bytes", 70).unwrap(), &bytes[..]);
            prop_assert_eq!(decoder.u64("u64").unwrap(), words.1);
            prop_assert_eq!(decoder.opaque("text", 100).unwrap(), text.as_bytes());
            prop_assert_eq!(decoder.bool("bool").unwrap(), words.2);
            prop_assert_eq!(decoder.finish(), Ok(()));
        }

        #[test]
        fn garbage_never_panics(message in prop::collection::vec(any::<u8>(), 0..64)) {
            let mut decoder = Decoder::new(&message);
            while decoder.opaque("field", 32).is_ok() {}
            let _ = Decoder::new(&message).u64("word");
        }
    }
}
