//! The objects of a value so far that may occur again, so that sharing is noticed.

use std::collections::HashSet;
use std::hash::{BuildHasherDefault, Hasher};

/// The most ids that are searched one by one; beyond it, they are put into a table.
const FEW: usize = 8;

/// A set of object ids.
#[derive(Default)]
pub struct Seen {
    few: [usize; FEW],
    len: usize,
    many: Option<HashSet<usize, BuildHasherDefault<IdHasher>>>,
}

impl Seen {
    /// Adds `id`; `false` when it was there already.
    #[inline]
    pub fn insert(&mut self, id: usize) -> bool {
        if self.many.is_some() || self.len == FEW {
            return self.insert_in_table(id);
        }
        if self.few[..self.len].contains(&id) {
            return false;
        }
        self.few[self.len] = id;
        self.len += 1;
        true
    }

    #[cold]
    fn insert_in_table(&mut self, id: usize) -> bool {
        let few = &self.few;
        self.many
            .get_or_insert_with(|| few.iter().copied().collect())
            .insert(id)
    }

    /// Whether `id` was added.
    pub fn contains(&self, id: usize) -> bool {
        match &self.many {
            Some(many) => many.contains(&id),
            None => self.few[..self.len].contains(&id),
        }
    }

    /// Takes `id` back out.
    pub fn remove(&mut self, id: usize) {
        if let Some(many) = &mut self.many {
            many.remove(&id);
        } else if let Some(at) = self.few[..self.len].iter().position(|&seen| seen == id) {
            self.len -= 1;
            self.few.swap(at, self.len);
        }
    }
}

/// Spreads addresses, which are multiples of 16, over the table.
#[derive(Default)]
pub struct IdHasher(u64);

impl Hasher for IdHasher {
    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.write_u64(u64::from(byte));
        }
    }

    fn write_u64(&mut self, value: u64) {
        self.0 = (self.0 ^ value)
            .wrapping_mul(0x9e37_79b9_7f4a_7c15)
            .rotate_left(26);
    }

    fn write_usize(&mut self, value: usize) {
        self.write_u64(value as u64);
    }

    fn finish(&self) -> u64 {
        self.0
    }
}
