//! The first byte of every encoded value, and the numbers of the extension types.

/// MessagePack: `0x00..=0x7f` are the integers themselves.
pub const FIXINT_MAX: u8 = 0x7f;
/// MessagePack: a map of up to 15 entries; the low bits are their number.
pub const FIXMAP: u8 = 0x80;
/// MessagePack: an array of up to 15 items.
pub const FIXARRAY: u8 = 0x90;
/// MessagePack: UTF-8 text of up to 31 bytes.
pub const FIXSTR: u8 = 0xa0;
/// MessagePack: `None`.
pub const NIL: u8 = 0xc0;
/// The one byte that MessagePack never uses: our own kinds, whose length is not written ahead.
pub const OWN: u8 = 0xc1;
/// MessagePack: `False`.
pub const FALSE: u8 = 0xc2;
/// MessagePack: `True`.
pub const TRUE: u8 = 0xc3;
/// MessagePack: bytes with a length of 8 bits; `+ 1` of 16, `+ 2` of 32.
pub const BIN8: u8 = 0xc4;
/// MessagePack: bytes with a length of 16 bits.
pub const BIN16: u8 = 0xc5;
/// MessagePack: bytes with a length of 32 bits.
pub const BIN32: u8 = 0xc6;
/// MessagePack: an extension type with a length of 8 bits.
pub const EXT8: u8 = 0xc7;
/// MessagePack: an extension type with a length of 16 bits.
pub const EXT16: u8 = 0xc8;
/// MessagePack: an extension type with a length of 32 bits.
pub const EXT32: u8 = 0xc9;
/// MessagePack: a float of 32 bits, which only writers without Python use.
pub const FLOAT32: u8 = 0xca;
/// MessagePack: a double.
pub const FLOAT64: u8 = 0xcb;
/// MessagePack: an unsigned integer of 8 bits.
pub const UINT8: u8 = 0xcc;
/// MessagePack: an unsigned integer of 16 bits.
pub const UINT16: u8 = 0xcd;
/// MessagePack: an unsigned integer of 32 bits.
pub const UINT32: u8 = 0xce;
/// MessagePack: an unsigned integer of 64 bits.
pub const UINT64: u8 = 0xcf;
/// MessagePack: a signed integer of 8 bits.
pub const INT8: u8 = 0xd0;
/// MessagePack: a signed integer of 16 bits.
pub const INT16: u8 = 0xd1;
/// MessagePack: a signed integer of 32 bits.
pub const INT32: u8 = 0xd2;
/// MessagePack: a signed integer of 64 bits.
pub const INT64: u8 = 0xd3;
/// MessagePack: text with a length of 8 bits.
pub const STR8: u8 = 0xd9;
/// MessagePack: text with a length of 16 bits.
pub const STR16: u8 = 0xda;
/// MessagePack: text with a length of 32 bits.
pub const STR32: u8 = 0xdb;
/// MessagePack: an array with a count of 16 bits.
pub const ARRAY16: u8 = 0xdc;
/// MessagePack: an array with a count of 32 bits.
pub const ARRAY32: u8 = 0xdd;
/// MessagePack: a map with a count of 16 bits.
pub const MAP16: u8 = 0xde;
/// MessagePack: a map with a count of 32 bits.
pub const MAP32: u8 = 0xdf;
/// MessagePack: `0xe0..=0xff` are the integers -32 to -1.
pub const NEGATIVE_FIXINT: u8 = 0xe0;

/// The byte after [`OWN`].
pub mod own {
    /// A tuple: a MessagePack array follows.
    pub const TUPLE: u8 = 1;
    /// A set: a MessagePack array follows.
    pub const SET: u8 = 2;
    /// A frozenset: a MessagePack array follows.
    pub const FROZENSET: u8 = 3;
    /// A NumPy array.
    pub const ARRAY: u8 = 4;
    /// A pickle with its buffers.
    pub const PICKLE: u8 = 5;
    /// A record of a source: its seven values follow.
    pub const RECORD: u8 = 6;
    /// A line of a file, and the columns of its records.
    pub const LINE: u8 = 7;
}

/// The type numbers of MessagePack extensions.
pub mod ext {
    /// An integer beyond 64 bits.
    pub const BIG_INT: u8 = 1;
    /// A complex number.
    pub const COMPLEX: u8 = 2;
    /// A bytearray.
    pub const BYTEARRAY: u8 = 3;
    /// Text that holds lone surrogates.
    pub const SURROGATES: u8 = 4;
    /// A date.
    pub const DATE: u8 = 5;
    /// A time of day.
    pub const TIME: u8 = 6;
    /// A date with a time of day.
    pub const DATETIME: u8 = 7;
    /// A span of time.
    pub const TIMEDELTA: u8 = 8;
    /// A NumPy scalar.
    pub const NUMPY_SCALAR: u8 = 9;
}

/// The maximum depth of nested lists, dicts, tuples and sets in the native format.
pub const MAX_DEPTH: usize = 64;
