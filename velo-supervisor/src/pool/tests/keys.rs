//! Keys: one at a time is attached, the others wait in line, whoever dies.

use velo_shm::{Allowance, Setting};

use super::*;
use crate::wire::protocol::{Key, KeyRefusal};

const KEY: Key = Key([7; 32]);

#[derive(Debug, Clone, Copy)]
struct Granted {
    client: ClientId,
    request: RequestId,
    link: LinkId,
    grant: u64,
    fresh: bool,
}

impl Rig {
    fn ask(&mut self, client: ClientId, key: Key, wait: bool) -> (RequestId, Vec<Action>) {
        let request = RequestId(self.next_request);
        self.next_request += 1;
        self.pool
            .acquire_key(self.now, client, request, key, 2, wait);
        (request, self.reconcile())
    }

    /// Attaches a client that finds the key free.
    fn attach(&mut self, client: ClientId) -> Granted {
        let (request, done) = self.ask(client, KEY, true);
        let granted = granted(&done);
        assert_eq!(
            (granted.client, granted.request),
            (client, request),
            "{done:?}"
        );
        granted
    }

    fn free(&mut self, granted: Granted, live: bool) -> Vec<Action> {
        let worker = self.worker_of_link(granted.link);
        self.pool.key_free(worker, KEY, granted.grant, live);
        self.reconcile()
    }

    fn worker_of_link(&self, link: LinkId) -> WorkerId {
        self.pool.links[&link].worker
    }

    fn keys(&self) -> usize {
        self.pool
            .workers
            .keys()
            .map(|id| self.pool.keys.of(*id))
            .sum()
    }
}

fn grants(actions: &[Action]) -> Vec<Granted> {
    let grant = |action: &Action| match *action {
        Action::GrantKey {
            client,
            request,
            link,
            grant,
            fresh,
        } => Some(Granted {
            client,
            request,
            link,
            grant,
            fresh,
        }),
        _ => None,
    };
    actions.iter().filter_map(grant).collect()
}

fn granted(actions: &[Action]) -> Granted {
    match grants(actions)[..] {
        [one] => one,
        _ => panic!("not one grant in {actions:?}"),
    }
}

fn refused(actions: &[Action]) -> Vec<(ClientId, &KeyRefusal)> {
    let refusal = |action| match action {
        &Action::RefuseKey {
            client, ref reason, ..
        } => Some((client, reason)),
        _ => None,
    };
    actions.iter().filter_map(refusal).collect()
}

#[test]
fn the_first_one_begins_it_and_the_others_come_to_the_same_worker() {
    let mut rig = Rig::new(|_| {});
    let first = rig.attach(1);
    assert!(first.fresh);
    assert!(rig.free(first, true).is_empty());
    let second = rig.attach(2);
    assert!(!second.fresh);
    assert_ne!(second.link, first.link, "it has a link of its own");
    assert_eq!(
        rig.worker_of_link(second.link),
        rig.worker_of_link(first.link)
    );
    rig.free(second, true);
    assert_eq!(rig.attach(1).link, first.link, "links are used again");
}

#[test]
fn they_wait_in_line_in_the_order_in_which_they_came() {
    let mut rig = Rig::new(|_| {});
    let mut holder = rig.attach(1);
    let mut order = Vec::new();
    for client in [3, 2, 1, 3] {
        let (request, done) = rig.ask(client, KEY, true);
        assert!(grants(&done).is_empty());
        order.push((client, request));
    }
    for (client, request) in order {
        let done = rig.free(holder, true);
        holder = granted(&done);
        assert_eq!((holder.client, holder.request), (client, request));
    }
    assert!(grants(&rig.free(holder, true)).is_empty());
}

#[test]
fn what_is_detached_and_who_waits_is_counted() {
    let mut rig = Rig::new(|_| {});
    let first = rig.attach(1);
    let worker = rig.worker_of_link(first.link);
    let counted = |rig: &Rig| {
        let counts = rig.pool.key_counts();
        assert!(
            counts.keys().all(|id| *id == Some(worker)),
            "{counts:?} of no other"
        );
        let counts = counts.get(&Some(worker)).copied().unwrap_or_default();
        (counts.detached, counts.waiting)
    };
    assert_eq!(counted(&rig), (0, 0), "it is attached");
    rig.ask(2, KEY, true);
    rig.ask(3, KEY, true);
    assert_eq!(counted(&rig), (0, 2));
    let second = granted(&rig.free(first, true));
    assert_eq!(counted(&rig), (0, 1));
    let third = granted(&rig.free(second, true));
    rig.free(third, true);
    assert_eq!(counted(&rig), (1, 0));
    let again = rig.attach(1);
    assert_eq!(counted(&rig), (0, 0));
    rig.free(again, false);
    assert_eq!(counted(&rig), (0, 0), "it has ended");
}

#[test]
fn who_waits_for_a_worker_is_counted() {
    let mut rig = Rig::new(|_| {});
    let request = RequestId(1);
    rig.pool.acquire_key(rig.now, 1, request, KEY, 2, true);
    let counts = rig.pool.key_counts();
    assert_eq!(counts.len(), 1);
    assert_eq!((counts[&None].detached, counts[&None].waiting), (0, 1));
}

#[test]
fn who_does_not_want_to_wait_is_told() {
    let mut rig = Rig::new(|_| {});
    let holder = rig.attach(1);
    let (_, done) = rig.ask(2, KEY, false);
    assert_eq!(refused(&done), [(2, &KeyRefusal::Taken)]);
    // Whoever has seen its attachment end does not find the key taken, whoever is heard first.
    rig.pool.left_key(2, KEY, holder.grant); // it is not client 2 who says so
    let (_, done) = rig.ask(2, KEY, false);
    assert_eq!(refused(&done), [(2, &KeyRefusal::Taken)]);
    rig.pool.left_key(1, KEY, holder.grant);
    let (_, done) = rig.ask(1, KEY, false);
    assert!(refused(&done).is_empty());
    assert_eq!(granted(&rig.free(holder, true)).client, 1);
}

#[test]
fn what_is_over_is_begun_again_and_its_beginner_learns_of_it() {
    let mut rig = Rig::new(|_| {});
    let first = rig.attach(1);
    rig.free(first, true);
    let second = rig.attach(2);
    let done = rig.free(second, false);
    let gone = Action::KeyGone {
        client: 1,
        request: first.request,
    };
    assert_eq!(done, [gone]);
    assert_eq!(rig.keys(), 0);
    assert!(rig.attach(2).fresh);
}

#[test]
fn a_detached_one_that_ends_is_forgotten() {
    let mut rig = Rig::new(|_| {});
    let first = rig.attach(1);
    rig.free(first, true);
    assert_eq!(rig.keys(), 1);
    rig.free(first, false);
    assert_eq!(rig.keys(), 0);
    assert!(rig.attach(1).fresh);
}

#[test]
fn an_end_that_has_crossed_with_a_grant_is_not_heard() {
    let mut rig = Rig::new(|_| {});
    let first = rig.attach(1);
    rig.free(first, true);
    let second = rig.attach(2);
    assert!(
        rig.free(first, false).is_empty(),
        "the worker begins it again for the second"
    );
    let (_, done) = rig.ask(1, KEY, false);
    assert_eq!(refused(&done), [(1, &KeyRefusal::Taken)]);
    assert!(rig.free(second, false).len() == 1);
    assert_eq!(rig.keys(), 0);
}

#[test]
fn a_client_that_dies_leaves_the_line_and_gives_back_what_it_has() {
    let mut rig = Rig::new(|_| {});
    let holder = rig.attach(1);
    let worker = rig.worker_of_link(holder.link);
    rig.ask(2, KEY, true);
    let (third, _) = rig.ask(3, KEY, true);
    rig.pool.client_gone(rig.now, 2);
    rig.reconcile();
    rig.pool.client_gone(rig.now, 1);
    let done = rig.reconcile();
    let release = Action::ReleaseKey {
        worker,
        key: KEY,
        grant: holder.grant,
    };
    let detach = Action::Detach {
        worker,
        link: holder.link,
    };
    let place = |wanted: &Action| done.iter().position(|action| action == wanted);
    assert!(place(&detach).expect("detached") < place(&release).expect("released"));
    assert!(
        grants(&done).is_empty(),
        "what it has sent is handled first"
    );
    rig.pool.key_free(worker, KEY, holder.grant, true);
    let next = granted(&rig.reconcile());
    assert_eq!((next.client, next.request), (3, third));
}

#[test]
fn a_worker_may_say_twice_that_a_key_is_free() {
    for live in [true, false] {
        let mut rig = Rig::new(|_| {});
        let first = rig.attach(1);
        let worker = rig.worker_of_link(first.link);
        let (request, _) = rig.ask(2, KEY, true);
        rig.willing = false;
        rig.free(first, true);
        // The next one waits for its link when that comes.
        rig.pool.key_free(worker, KEY, first.grant, live);
        rig.willing = true;
        let links: Vec<_> = rig.pool.links.keys().copied().collect();
        for link in links {
            rig.pool.attached(rig.now, worker, link);
        }
        let next = granted(&rig.reconcile());
        assert_eq!((next.client, next.request), (2, request));
        assert_eq!(next.fresh, !live);
    }
}

/// Its worker has moved on while it wrote its stacks, and lives: the one in line comes to it.
#[test]
fn a_key_that_became_free_while_its_worker_was_to_be_killed_is_granted() {
    let mut rig = Rig::new(|_| {});
    let first = rig.attach(1);
    let (link, worker) = (first.link, rig.worker_of_link(first.link));
    let limit = 400 * MS;
    let asks = Watch {
        stall: Some(limit),
        memory: None,
    };
    rig.fake.residents.insert(link, 1);
    assert!(rig.pool.watch(rig.now, 1, link, asks));
    let (request, done) = rig.ask(2, KEY, true);
    assert!(grants(&done).is_empty());
    let running = Running {
        step: 1,
        slot: 1,
        stream: 0,
        event: 1,
        allowance: Some(Allowance {
            time: limit,
            setting: Setting::Stall,
        }),
    };
    rig.fake.running.insert(link, running);
    rig.fake.progress.entry(link).or_default().step = 1;
    let done = rig.pass(2 * limit);
    assert!(done.contains(&Action::AskForStacks { worker }), "{done:?}");
    rig.pool.key_free(worker, KEY, first.grant, true);
    rig.fake.running.remove(&link);
    rig.fake.progress.entry(link).or_default().step = 2;
    let next = granted(&rig.pass(MS));
    assert_eq!((next.client, next.request), (2, request));
    assert_eq!(rig.worker_of_link(next.link), worker);
}

#[test]
fn a_request_can_be_withdrawn_at_any_time() {
    let mut rig = Rig::new(|_| {});
    // Before there is a worker.
    rig.willing = false;
    let (request, done) = rig.ask(1, KEY, true);
    assert_eq!(spawns(&done), 1);
    rig.pool.release_key(1, request, KEY);
    rig.willing = true;
    assert!(grants(&rig.reconcile()).is_empty());
    assert_eq!(rig.keys(), 0);
    // When it was granted: the worker says that there is nothing.
    let mut rig = Rig::new(|_| {});
    let holder = rig.attach(1);
    let (waiting, _) = rig.ask(2, KEY, true);
    rig.pool.release_key(2, holder.request, KEY); // not its own
    rig.pool.release_key(1, holder.request, KEY);
    let done = rig.reconcile();
    assert!(matches!(done[..], [Action::ReleaseKey { grant, .. }] if grant == holder.grant));
    let next = granted(&rig.free(holder, false));
    assert_eq!((next.client, next.request), (2, waiting));
    assert!(next.fresh);
    // In line.
    let (waiting, _) = rig.ask(1, KEY, true);
    rig.pool.release_key(1, waiting, KEY);
    assert!(grants(&rig.free(next, true)).is_empty());
}

#[test]
fn a_worker_that_dies_takes_its_keys_with_it_and_the_line_goes_on_elsewhere() {
    let mut rig = Rig::new(|_| {});
    let holder = rig.attach(1);
    let worker = rig.worker_of_link(holder.link);
    rig.ask(2, KEY, true);
    rig.pool.exited(rig.now, worker, Exit::Signal(9));
    let done = rig.reconcile();
    assert!(
        done.iter()
            .any(|action| matches!(action, Action::Died { client: 1, .. }))
    );
    let next = granted(&done);
    assert_eq!((next.client, next.fresh), (2, true));
    assert_ne!(rig.worker_of_link(next.link), worker);
    // What the dead one had said is not heard.
    rig.pool.key_free(worker, KEY, holder.grant, false);
    assert!(rig.reconcile().is_empty());
}

#[test]
fn who_waits_for_a_link_when_the_worker_dies_is_attached_elsewhere() {
    let mut rig = Rig::new(|_| {});
    let first = rig.attach(1);
    let worker = rig.worker_of_link(first.link);
    rig.free(first, true);
    rig.willing = false;
    let (request, done) = rig.ask(2, KEY, true);
    assert!(matches!(done[..], [Action::Attach { client: 2, .. }]));
    rig.pool.exited(rig.now, worker, Exit::Signal(9));
    rig.willing = true;
    let next = granted(&rig.reconcile());
    assert_eq!((next.client, next.request, next.fresh), (2, request, true));
}

#[test]
fn a_link_that_cannot_be_made_is_told_and_the_next_one_has_its_turn() {
    let mut rig = Rig::new(|_| {});
    let first = rig.attach(1);
    let worker = rig.worker_of_link(first.link);
    rig.free(first, true);
    rig.willing = false;
    let (_, done) = rig.ask(2, KEY, true);
    let [Action::Attach { link, .. }] = done[..] else {
        panic!("{done:?}")
    };
    rig.ask(1, KEY, true);
    rig.pool
        .attach_failed(rig.now, worker, link, "no memory".into());
    let done = rig.reconcile();
    assert_eq!(
        refused(&done),
        [(2, &KeyRefusal::Failed("no memory".into()))]
    );
    assert_eq!(granted(&done).client, 1);
}

#[test]
fn a_worker_with_keys_stays_and_costs_no_look() {
    let mut rig = Rig::new(|_| {});
    let first = rig.attach(1);
    rig.free(first, true);
    let done = rig.pass(3 * IDLE);
    assert!(
        done.contains(&Action::Retired {
            client: 1,
            link: first.link
        }),
        "the link goes"
    );
    assert!(!done.iter().any(|a| matches!(a, Action::Stop { .. })));
    assert_eq!(rig.pool.next_deadline(), None, "nothing is periodic");
    let again = rig.attach(1);
    assert!(!again.fresh);
    rig.free(again, false);
    let done = rig.pass(3 * IDLE);
    assert!(done.iter().any(|a| matches!(a, Action::Stop { .. })));
}

#[test]
fn a_retiring_worker_lets_go_of_its_keys_before_it_is_stopped() {
    let mut rig = Rig::new(|_| {});
    let first = rig.attach(1);
    let worker = rig.worker_of_link(first.link);
    rig.fake.residents.insert(first.link, 1);
    rig.pool.retire_all();
    assert_eq!(rig.reconcile(), [Action::Retire { worker }]);
    let (_, done) = rig.ask(2, KEY, true);
    assert!(grants(&done).is_empty());
    // It detaches, and the worker ends what is detached then.
    rig.fake.residents.insert(first.link, 0);
    let done = rig.free(first, true);
    assert!(grants(&done).is_empty(), "it is about to end");
    assert!(!done.iter().any(|a| matches!(a, Action::Stop { .. })));
    rig.pool.key_free(worker, KEY, first.grant, false);
    let done = rig.pass(100 * MS);
    let next = granted(&done);
    assert_eq!((next.client, next.fresh), (2, true));
    assert_ne!(rig.worker_of_link(next.link), worker);
    assert!(
        done.iter()
            .any(|a| matches!(a, Action::Stop { worker: w, .. } if *w == worker))
    );
}

#[test]
fn draining_refuses_who_waits_and_lets_the_attached_finish() {
    let mut rig = Rig::new(|_| {});
    let first = rig.attach(1);
    rig.fake.residents.insert(first.link, 1);
    rig.ask(2, KEY, true);
    rig.pool.drain();
    let done = rig.reconcile();
    assert!(matches!(refused(&done)[..], [(2, KeyRefusal::Failed(why))] if why.contains("drain")));
    let (_, done) = rig.ask(3, KEY, true);
    assert!(matches!(refused(&done)[..], [(3, KeyRefusal::Failed(_))]));
    rig.fake.residents.insert(first.link, 0);
    rig.free(first, true);
    rig.free(first, false);
    rig.pass(100 * MS);
    assert_eq!(rig.keys(), 0);
}

#[test]
fn new_keys_are_spread_over_the_workers() {
    let mut rig = Rig::new(|_| {});
    let mut workers = Vec::new();
    for number in 0..6 {
        let (_, done) = rig.ask(1, Key([number; 32]), true);
        workers.push(rig.worker_of_link(granted(&done).link));
    }
    workers.sort_unstable();
    assert_eq!(workers, [1, 1, 1, 2, 2, 2]);
}

#[test]
fn a_client_at_its_quota_of_links_begins_keys_where_it_has_one() {
    let mut rig = Rig::new(|settings| {
        settings.client_workers = Some(1);
        settings.min = 2;
    });
    rig.reconcile();
    rig.pool.client_came(1, 100);
    rig.pool.client_came(2, 200);
    let first = rig.attach(1);
    let (_, done) = rig.ask(1, Key([1; 32]), true);
    assert_eq!(granted(&done).link, first.link);
    rig.free(first, true);
    rig.fake.residents.insert(first.link, 1);
    let (link, _) = rig.link(2, 2);
    assert_ne!(rig.worker_of_link(link), rig.worker_of_link(first.link));
    let (_, done) = rig.ask(2, KEY, true);
    assert!(
        matches!(refused(&done)[..], [(2, KeyRefusal::Failed(why))] if why.contains("--client-workers"))
    );
    assert_eq!(rig.attach(1).link, first.link, "nobody is in its way");
}

#[test]
fn without_a_zygote_who_waits_is_told() {
    let mut rig = Rig::new(|_| {});
    rig.willing = false;
    rig.ask(1, KEY, true);
    rig.pool.give_up("there is no zygote");
    let done = rig.reconcile();
    assert_eq!(
        refused(&done),
        [(1, &KeyRefusal::Failed("there is no zygote".into()))]
    );
    assert_eq!(rig.keys(), 0);
}
