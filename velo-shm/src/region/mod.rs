//! One side's private view of a link's memory: where everything lies, who holds which slot, and how
//! the other side is woken. It is what rings and the link's public face are built on.

mod attached;
pub(crate) mod heap;
mod ready;
mod ring_memory;
mod setup;
mod slot_hold;

pub(crate) use attached::Region;
pub(crate) use ready::take_flag;
pub(crate) use ring_memory::RingMemory;
pub use setup::initialise;
pub(crate) use setup::says;
pub(crate) use slot_hold::SlotHold;
