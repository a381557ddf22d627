//! How many streams this process has open at a supervisor: the quota is kept by clients.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

static OPEN: Mutex<BTreeMap<PathBuf, u32>> = Mutex::new(BTreeMap::new());

/// One open stream, counted until this is dropped.
#[derive(Debug)]
pub(super) struct Counted(PathBuf);

impl Counted {
    /// One more, unless there are `most` already; 0 for any number.
    pub(super) fn one(supervisor: &Path, most: u32) -> Option<Self> {
        let mut open = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
        let count = open.entry(supervisor.to_owned()).or_default();
        if most > 0 && *count >= most {
            return None;
        }
        *count += 1;
        Some(Self(supervisor.to_owned()))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let mut open = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = open.get_mut(&self.0) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                open.remove(&self.0);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn so_many_and_no_more_until_one_goes() {
        let (here, there) = (Path::new("/quota/here"), Path::new("/quota/there"));
        let one = Counted::one(here, 2).expect("the first");
        let _two = Counted::one(here, 2).expect("the second");
        assert!(Counted::one(here, 2).is_none());
        assert!(Counted::one(there, 2).is_some(), "each supervisor counts");
        assert!(Counted::one(here, 0).is_some(), "without a quota");
        drop(one);
        assert!(Counted::one(here, 2).is_some());
    }
}
