use super::*;
use crate::wire::protocol::{Welcome, WorkerInfo};
use crate::wire::transport;

/// A client and its supervisor's end.
fn client() -> (Client, Channel<std::os::fd::OwnedFd>) {
    let (here, there) = transport::pair().expect("a socketpair");
    let client = Client::new(TrackedFd::new(here, InChild::Replace)).expect("a client");
    (client, Channel::new(there).expect("a channel"))
}

fn hello(version: u32) -> ToClient {
    let welcome = Welcome::default();
    ToClient::Hello { version, welcome }
}

#[test]
fn one_that_is_turned_away_hears_why() {
    let (here, there) = transport::pair().expect("a socketpair");
    let mut supervisor = Channel::new(there).expect("a channel");
    let why = "too many".into();
    supervisor
        .send(&ToClient::TurnedAway { why }, Vec::new())
        .expect("send");
    drop(supervisor);
    let mut client = Client::new(TrackedFd::new(here, InChild::Replace)).expect("a client");
    let error = client.poll().expect_err("turned away").to_string();
    assert!(error.contains("too many"), "{error}");
}

#[test]
fn nobody_at_the_path_is_said_with_the_path() {
    let error = Client::connect(Path::new("/nowhere/at.sock")).expect_err("nobody");
    assert!(matches!(error, SupervisorError::Nobody { .. }));
    assert!(error.to_string().contains("/nowhere/at.sock"));
}

#[test]
fn one_that_accepts_no_connection_is_told_from_nobody() {
    let full = crate::os::dial::tests::Full::new("silent");
    let error = Client::connect(&full.path).expect_err("no place");
    assert!(matches!(error, SupervisorError::Silent { .. }), "{error}");
}

#[test]
fn it_says_hello_first_and_then_what_it_is_asked() {
    let (mut client, mut supervisor) = client();
    let request = client.acquire(3).expect("acquire");
    client.release(LinkId(9)).expect("release");
    let mut said = Vec::new();
    while let Ok(Received::Message(message, _)) = supervisor.receive::<FromClient>() {
        said.push(message);
    }
    assert!(matches!(
        said[0],
        FromClient::Hello {
            version: PROTOCOL_VERSION
        }
    ));
    assert!(matches!(said[1], FromClient::Acquire { request: r, max_workers: 3 } if r == request));
    assert!(matches!(
        said[2],
        FromClient::Release {
            link: LinkId(9),
            broken: false
        }
    ));
}

#[test]
fn handles_may_move_to_other_threads() {
    fn movable<T: Send>() {}
    movable::<Client>();
    movable::<ClientEvent>();
    movable::<crate::WorkerControl>();
    movable::<crate::WorkerControlEvent>();
}

#[test]
fn another_version_is_named() {
    let (mut client, mut supervisor) = client();
    let version = PROTOCOL_VERSION + 1;
    supervisor.send(&hello(version), Vec::new()).expect("send");
    let error = client.poll().expect_err("another version").to_string();
    assert!(error.contains(&format!("version `{version}`")), "{error}");
    assert!(matches!(client.acquire(1), Err(SupervisorError::Lost)));
}

#[test]
fn the_end_is_said_once_and_after_the_rest() {
    let (mut client, mut supervisor) = client();
    supervisor
        .send(&ToClient::Retired { link: LinkId(4) }, Vec::new())
        .expect("send");
    drop(supervisor);
    let events = client.poll().expect("the rest");
    assert!(matches!(
        events[..],
        [
            ClientEvent::LinkRetired { link: LinkId(4) },
            ClientEvent::Lost
        ]
    ));
    assert!(client.poll().expect("nothing more").is_empty());
}

#[test]
fn a_link_that_cannot_be_mapped_is_refused_and_given_back() {
    let (mut client, mut supervisor) = client();
    let request = client.acquire(1).expect("acquire");
    let (one, two) = transport::pair().expect("a socketpair");
    let three = one.try_clone().expect("a copy");
    let link = LinkId(1);
    let worker = WorkerInfo { id: 1, pid: 1 };
    let message = ToClient::Link {
        request,
        link,
        worker,
    };
    supervisor
        .send(&message, vec![one, two, three])
        .expect("send");
    let events = client.poll().expect("an answer");
    assert!(matches!(
        events[..],
        [ClientEvent::Refused {
            reason: Refusal::Failed(_),
            ..
        }]
    ));
    let mut said = Vec::new();
    while let Ok(Received::Message(message, _)) = supervisor.receive::<FromClient>() {
        said.push(message);
    }
    assert!(matches!(
        said.last(),
        Some(FromClient::Release {
            link: LinkId(1),
            ..
        })
    ));
}

#[test]
fn a_link_without_all_of_its_descriptors_is_an_error() {
    let (mut client, mut supervisor) = client();
    let worker = WorkerInfo { id: 1, pid: 1 };
    let message = ToClient::Link {
        request: RequestId(1),
        link: LinkId(1),
        worker,
    };
    let (one, _) = transport::pair().expect("a socketpair");
    supervisor.send(&message, vec![one]).expect("send");
    assert!(matches!(client.poll(), Err(SupervisorError::Transport(_))));
}

#[test]
fn a_link_whose_descriptors_were_lost_is_refused_and_the_rest_goes_on() {
    let (mut client, mut supervisor) = client();
    let worker = WorkerInfo { id: 1, pid: 1 };
    let (request, link) = (RequestId(1), LinkId(1));
    let message = ToClient::Link {
        request,
        link,
        worker,
    };
    supervisor.send(&message, Vec::new()).expect("send");
    supervisor
        .send(&ToClient::Retired { link: LinkId(4) }, Vec::new())
        .expect("send");
    let events = client.poll().expect("an answer");
    let [
        ClientEvent::Refused {
            reason: Refusal::Failed(why),
            ..
        },
        ClientEvent::LinkRetired { link: LinkId(4) },
    ] = &events[..]
    else {
        panic!("{events:?}");
    };
    assert!(why.contains("ulimit -n"), "{why}");
}
