//! Which worker a new link goes to. Pure: it looks at figures, and knows no process.

/// A worker that could take the link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Candidate {
    pub(crate) worker: u32,
    /// Streams that are open on it, over all of its links.
    pub(crate) residents: u32,
    /// Links it has or is about to get.
    pub(crate) links: usize,
    /// Whether it already runs. One that is still starting answers later.
    pub(crate) running: bool,
}

/// The least loaded: fewest streams, then fewest links, then one that runs already, then the
/// oldest, so that the choice is the same for the same figures.
pub(crate) fn least_loaded(candidates: impl Iterator<Item = Candidate>) -> Option<u32> {
    candidates
        .min_by_key(|c| (c.residents, c.links, !c.running, c.worker))
        .map(|c| c.worker)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidate(worker: u32, residents: u32, links: usize, running: bool) -> Candidate {
        Candidate {
            worker,
            residents,
            links,
            running,
        }
    }

    #[test]
    fn nobody_is_chosen_from_none() {
        assert_eq!(least_loaded(std::iter::empty()), None);
    }

    #[test]
    fn streams_count_before_links_and_age() {
        let all = [
            candidate(1, 5, 1, true),
            candidate(2, 3, 9, true),
            candidate(3, 3, 2, false),
        ];
        assert_eq!(least_loaded(all.into_iter()), Some(3));
    }

    #[test]
    fn a_running_worker_goes_before_a_starting_one() {
        let all = [
            candidate(1, 0, 0, false),
            candidate(2, 0, 0, true),
            candidate(3, 0, 0, true),
        ];
        assert_eq!(least_loaded(all.into_iter()), Some(2));
    }
}
