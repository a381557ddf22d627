//! What only a shared pool does: retiring workers without cutting a stream, quotas.

use super::*;

/// Has the links of all workers that retire without a stream been closed?
fn closed(rig: &Rig, link: LinkId) -> bool {
    rig.fake.closed.borrow().contains(&link)
}

#[test]
fn a_retiring_worker_goes_with_its_last_stream() {
    let mut rig = Rig::new(|_| {});
    let (link, worker) = rig.link(1, 1);
    rig.fake.residents.insert(link, 1);
    rig.pool.retire_all();
    assert!(rig.reconcile().is_empty(), "its stream goes on");
    assert!(closed(&rig, link), "but nothing new comes");
    let (_, other) = rig.link(1, 1);
    assert_ne!(other, worker, "it does not count any more");
    assert!(
        rig.pass(5000 * MS).is_empty(),
        "however long the stream takes"
    );
    rig.fake.residents.insert(link, 0);
    let done = rig.pass(100 * MS);
    let stop = Action::Stop {
        worker,
        step: Step::Drain,
    };
    assert!(done.contains(&Action::Retired { client: 1, link }));
    assert!(done.contains(&stop), "{done:?}");
}

#[test]
fn idle_workers_retire_at_once_and_those_that_stay_are_replaced() {
    let mut rig = Rig::new(|settings| settings.min = 2);
    rig.reconcile();
    rig.pool.retire_all();
    let done = rig.reconcile();
    let count = |wanted: fn(&Action) -> bool| done.iter().filter(|action| wanted(action)).count();
    assert_eq!(count(|a| matches!(a, Action::Stop { .. })), 2);
    assert_eq!(count(|a| matches!(a, Action::Spawn { .. })), 2);
}

#[test]
fn a_retiring_worker_that_hangs_up_is_stopped_all_the_same() {
    let mut rig = Rig::new(|_| {});
    let (link, worker) = rig.link(1, 1);
    rig.fake.residents.insert(link, 1);
    rig.pool.retire_all();
    rig.reconcile();
    rig.pool.hung_up(rig.now, worker);
    let done = rig.pass(500 * MS);
    assert!(
        done.iter()
            .any(|a| matches!(a, Action::Stop { worker: w, .. } if *w == worker)),
        "{done:?}"
    );
}

#[test]
fn a_draining_pool_makes_nothing_and_says_so() {
    let mut rig = Rig::new(|settings| settings.min = 1);
    rig.willing = false;
    let request = rig.acquire(1, 1);
    assert!(!request.is_empty());
    rig.pool.drain();
    let done = rig.reconcile();
    assert!(
        done.iter()
            .any(|a| matches!(a, Action::Refuse { reason: Refusal::Failed(why), .. } if why.contains("draining"))),
        "who waits is told: {done:?}"
    );
    let done = rig.acquire(1, 1);
    assert!(matches!(&done[..], [Action::Refuse { .. }]), "{done:?}");
    assert!(
        !rig.pass(5000 * MS)
            .iter()
            .any(|a| matches!(a, Action::Spawn { .. }))
    );
}

#[test]
fn the_quota_of_workers_is_one_process_over_all_of_its_clients() {
    let mut rig = Rig::new(|settings| {
        settings.client_workers = Some(2);
        settings.min = 3;
    });
    rig.reconcile();
    rig.pool.client_came(1, 50);
    rig.pool.client_came(2, 50);
    rig.pool.client_came(3, 60);
    let (_, one) = rig.link(1, 9);
    let (_, two) = rig.link(1, 9);
    let at_limit = rig.acquire(1, 9);
    assert!(
        matches!(
            &at_limit[..],
            [Action::Refuse {
                reason: Refusal::AtLimit,
                ..
            }]
        ),
        "it goes on with what it has: {at_limit:?}"
    );
    // Another event loop of it has the workers that it has.
    let mut shared = [rig.link(2, 9).1, rig.link(2, 9).1];
    shared.sort_unstable();
    assert_eq!(shared, [one, two]);
    assert!(matches!(&rig.acquire(2, 9)[..], [Action::Refuse { .. }]));
    let (_, other) = rig.link(3, 9);
    assert!(
        ![one, two].contains(&other),
        "the least loaded one is nobody's"
    );
}
