//! How large a link is.

/// How many slots a link can have. Slot 0 is the control slot, a ring pair like any other.
#[cfg(not(loom))]
pub const MAX_SLOTS: u32 = 16384;
/// How many slots a link can have in a model, where every atomic costs.
#[cfg(loom)]
pub const MAX_SLOTS: u32 = 64;

/// The version of the layout that this crate makes and attaches to.
pub(crate) const VERSION: u32 = 6;

/// How large a link is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinkSpec {
    /// How many streams it can carry at a time, the control slot included.
    pub slots: u32,
    /// How many bytes a ring has to begin with: a power of two, 128 or more.
    pub ring_bytes: u32,
    /// How many bytes the grown rings of each direction can have together: a multiple of 4096.
    /// This is address space, not memory.
    pub heap_bytes: u64,
}

impl Default for LinkSpec {
    fn default() -> Self {
        LinkSpec {
            slots: MAX_SLOTS,
            ring_bytes: 2048,
            heap_bytes: 16 << 30,
        }
    }
}
