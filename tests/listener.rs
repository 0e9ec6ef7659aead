//! The listener process from both sides: real HTTP from outside, and the test in the supervisor's
//! place at the other end of its channels.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[path = "support/http.rs"]
mod http;
#[path = "support/listening.rs"]
mod listening;

use std::{
    fs::File,
    io::Read,
    net::SocketAddr,
    os::unix::fs::FileExt,
    thread,
    time::{Duration, Instant},
};

use everhook::domain::api::{FromHooks, INLINE_BODY, MAX_BODY, RawDelivery};
use http::{Client, head, request};
use listening::Listener;

const GITHUB: [(&str, &str); 3] =
    [("Content-Type", "application/json"), ("X-GitHub-Event", "push"), ("X-GitHub-Delivery", "d-1")];

fn body_of(delivery: &RawDelivery, frame: everhook::os::channel::Frame) -> Vec<u8> {
    let Some(length) = delivery.memfd else { return frame.body()[delivery.headers..].to_vec() };
    let mut file = File::from(frame.fds.into_iter().next().unwrap());
    assert!(file.write_at(b"x", 0).is_err() && file.set_len(0).is_err(), "it is sealed");
    let mut bytes = vec![0; length];
    file.read_exact_at(&mut bytes, 0).unwrap();
    file.read_to_end(&mut Vec::new()).unwrap();
    bytes
}

/// A client that has sent a whole delivery.
fn sent(address: SocketAddr) -> Client {
    let mut client = Client::connect(address);
    client.send(&head("POST", "/hooks/blog", &[], Some(2)));
    client.send(b"{}");
    client
}

#[test]
fn a_delivery_reaches_the_ledger_as_it_came() {
    let mut listener = Listener::start("hooks");
    let body = "{\"text\": \"… 🎉 \\u2026\"}\r\n".as_bytes();
    let mut client = Client::connect(listener.address);
    let mut headers = GITHUB.to_vec();
    headers.push(("Cookie", "private"));
    client.send(&head("POST", "/hooks/blog?x=1", &headers, Some(body.len())));
    client.send(body);
    let (delivery, frame) = listener.delivery();
    assert_eq!(delivery.app.as_deref(), Some("blog"));
    assert_eq!(delivery.address, "127.0.0.1");
    assert_eq!(delivery.memfd, None);
    let (headers, sent_body) = frame.body().split_at(delivery.headers);
    assert_eq!(sent_body, body);
    let mut sent: Vec<&str> = std::str::from_utf8(headers).unwrap().lines().collect();
    sent.sort_unstable();
    // Everything that a proof may lie in, and nothing that is between the sender and others.
    assert_eq!(
        sent,
        [
            "content-length: 29",
            "content-type: application/json",
            "host: test",
            "x-github-delivery: d-1",
            "x-github-event: push"
        ]
    );
    listener.answer(delivery.ticket, 202, r#"{"delivery": 31, "deploys": []}"#, None);
    let answer = client.answer(false);
    assert_eq!((answer.status, answer.text()), (202, r#"{"delivery": 31, "deploys": []}"#));
    assert_eq!(answer.header("content-type"), Some("application/json"));
    assert_eq!(answer.header("cache-control"), Some("no-store"));
    // The same connection takes the next one, and an error is a problem.
    client.send(&head("POST", "/deploy", &GITHUB, Some(2)));
    client.send(b"{}");
    let (delivery, _) = listener.delivery();
    assert_eq!(delivery.app, None);
    listener.answer(delivery.ticket, 429, r#"{"status": 429}"#, Some(7));
    let answer = client.answer(false);
    assert_eq!((answer.status, answer.header("retry-after")), (429, Some("7")));
    assert_eq!(answer.header("content-type"), Some("application/problem+json"));
}

#[test]
fn slashes_and_encoding_make_no_difference() {
    let mut listener = Listener::start("hooks");
    for (target, app) in [
        ("/hooks/blog/", Some("blog")),
        ("//deploy///blog?a=/x", Some("blog")),
        ("/hooks/%62log", Some("blog")),
        ("/hooks/a%2Fb", Some("a/b")),
        ("/hooks/", None),
    ] {
        let mut client = Client::connect(listener.address);
        client.send(&head("POST", target, &GITHUB, Some(2)));
        client.send(b"{}");
        let (delivery, _) = listener.delivery();
        assert_eq!(delivery.app.as_deref(), app, "{target}");
        listener.answer(delivery.ticket, 200, "{}", None);
        assert_eq!(client.answer(false).status, 200);
    }
}

#[test]
fn what_is_refused_at_the_door_reaches_nobody() {
    let mut listener = Listener::start("hooks");
    let at = listener.address;
    let json = ("Content-Type", "application/json");
    for (method, target, headers, body, status) in [
        ("GET", "/hooks/blog", vec![], &b""[..], 405),
        ("PUT", "/deploy", vec![], b"x", 405),
        ("POST", "/healthz", vec![], b"x", 405),
        ("POST", "/", vec![], b"x", 404),
        ("POST", "/hooks/a/b", vec![], b"x", 404),
        ("GET", "/api/v1/status", vec![("Authorization", "Bearer x")], b"", 404),
        ("POST", "/hooks/blog", vec![json], b"", 411),
        ("POST", "/hooks/blog", vec![json, ("Content-Encoding", "gzip")], b"x", 415),
        ("POST", "/hooks/blog", vec![("Content-Type", "text/plain")], b"x", 415),
        ("POST", "/hooks/blog", vec![json, ("Content-Length", "26214401")], b"", 413),
        ("POST", "/hooks/blog", vec![json, ("Content-Length", "2147483648")], b"", 413),
    ] {
        let answer = request(at, method, target, &headers, body);
        assert_eq!(answer.status, status, "{method} {target} {headers:?}");
        assert_eq!(answer.header("content-type"), Some("application/problem+json"), "{target}");
        let problem = answer.json();
        assert_eq!((problem["status"].as_u64(), problem["type"].as_str()), (Some(status.into()), Some("about:blank")));
        assert!(problem["title"].is_string() && problem["detail"].is_string(), "{problem}");
        if status == 405 {
            assert_eq!(answer.header("allow"), Some(if target == "/healthz" { "GET, HEAD" } else { "POST" }));
        }
    }
    let many: Vec<(String, String)> = (0..200).map(|i| (format!("X-{i}"), "1".to_owned())).collect();
    let many: Vec<(&str, &str)> = many.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
    assert_eq!(request(at, "POST", "/hooks", &many, b"{}").status, 431);
    assert_eq!(request(at, "POST", &format!("/hooks/{}", "a".repeat(20_000)), &[], b"{}").status, 431);
    assert!(listener.is_silent());
}

#[test]
fn a_missing_type_is_json_and_parameters_are_fine() {
    let mut listener = Listener::start("hooks");
    for headers in [
        &[][..],
        &[("Content-Type", "application/json; charset=utf-8"), ("Content-Encoding", "identity")],
        &[("Content-Type", "application/x-www-form-urlencoded")],
    ] {
        let mut client = Client::connect(listener.address);
        client.send(&head("POST", "/hooks", headers, Some(2)));
        client.send(b"{}");
        let (delivery, _) = listener.delivery();
        listener.answer(delivery.ticket, 200, "{}", None);
        assert_eq!(client.answer(false).status, 200, "{headers:?}");
    }
}

#[test]
fn large_bodies_come_sealed() {
    let mut listener = Listener::start("hooks");
    for size in [INLINE_BODY, INLINE_BODY + 1, MAX_BODY] {
        let body: Vec<u8> = (0..size).map(|i| u8::try_from(i % 251).unwrap()).collect();
        for chunked in [false, true] {
            let (address, sent) = (listener.address, body.clone());
            let client = thread::spawn(move || {
                let mut client = Client::connect(address);
                if chunked {
                    client.send(&head("POST", "/hooks/blog", &[("Transfer-Encoding", "chunked")], None));
                    for piece in sent.chunks(100_000) {
                        client.send(format!("{:x}\r\n", piece.len()).as_bytes());
                        client.send(piece);
                        client.send(b"\r\n");
                    }
                    client.send(b"0\r\n\r\n");
                } else {
                    client.send(&head("POST", "/hooks/blog", &[], Some(sent.len())));
                    client.send(&sent);
                }
                client.answer(false).status
            });
            let (delivery, frame) = listener.delivery();
            assert_eq!(delivery.memfd.is_some(), size > INLINE_BODY);
            let ticket = delivery.ticket;
            assert!(body_of(&delivery, frame) == body, "{size} {chunked}");
            listener.answer(ticket, 202, "{}", None);
            assert_eq!(client.join().unwrap(), 202);
        }
    }
}

#[test]
fn a_body_over_the_limit_is_told_so_while_it_still_comes() {
    let mut listener = Listener::start("hooks");
    let piece = vec![b'x'; 1024 * 1024];
    let mut announced = Client::connect(listener.address);
    announced.send(&head("POST", "/hooks/blog", &[], Some(30 * piece.len())));
    let mut chunked = Client::connect(listener.address);
    chunked.send(&head("POST", "/hooks/blog", &[("Transfer-Encoding", "chunked")], None));
    for _ in 0..30 {
        announced.send(&piece);
        chunked.send(b"100000\r\n");
        chunked.send(&piece);
        chunked.send(b"\r\n");
    }
    for client in [&mut announced, &mut chunked] {
        let answer = client.answer(false);
        assert_eq!((answer.status, answer.header("connection")), (413, Some("close")));
    }
    assert!(listener.is_silent());
}

/// A connection that is reset takes an answer with it that was not read yet.
#[test]
fn what_is_no_request_is_told_so_while_it_still_comes() {
    let mut listener = Listener::start("hooks");
    let long = format!("POST /hooks HTTP/1.1\r\nHost: test\r\nX: {}", "x".repeat(200 * 1024));
    for (bytes, status) in [(long, 431), (format!("POST /hooks\r\n\r\n{}", "x".repeat(200 * 1024)), 400)] {
        let mut client = Client::connect(listener.address);
        assert!(client.send(bytes.as_bytes()));
        assert_eq!(client.status(), Some(status));
        assert_eq!(client.rest(), "closed");
    }
    assert!(listener.is_silent());
}

#[test]
fn large_bodies_share_their_room_and_small_ones_need_none() {
    let mut listener = Listener::start("hooks");
    let address = listener.address;
    let send = move |size: usize| {
        thread::spawn(move || {
            let mut client = Client::connect(address);
            // At once: whoever pauses, as on a busy machine, is sent away for those who wait.
            client.send(&[head("POST", "/hooks/blog", &[], Some(size)), vec![b'x'; size]].concat());
            client.answer(false)
        })
    };
    let kept: Vec<_> = (0..2).map(|_| (send(MAX_BODY), listener.delivery().0.ticket)).collect();
    let refused = send(MAX_BODY);
    let small = send(1000);
    let ticket = listener.delivery().0.ticket;
    listener.answer(ticket, 202, "{}", None);
    assert_eq!(small.join().unwrap().status, 202);
    let refused = refused.join().unwrap();
    assert_eq!((refused.status, refused.header("retry-after")), (503, Some("5")));
    // Waiting ones get the room as soon as there is some. Both are answered at once: they have waited for long.
    let next = [send(MAX_BODY), send(MAX_BODY)];
    kept.iter().for_each(|(_, ticket)| listener.answer(*ticket, 202, "{}", None));
    for (client, _) in kept {
        assert_eq!(client.join().unwrap().status, 202);
    }
    for _ in &next {
        let ticket = listener.delivery().0.ticket;
        listener.answer(ticket, 202, "{}", None);
    }
    for client in next {
        assert_eq!(client.join().unwrap().status, 202);
    }
}

#[test]
fn answers_find_whoever_asked() {
    let mut listener = Listener::start("hooks");
    let mut clients = Vec::new();
    for number in 0..20 {
        let mut client = Client::connect(listener.address);
        client.send(&head("POST", &format!("/hooks/app-{number}"), &[], Some(2)));
        client.send(b"{}");
        clients.push(client);
    }
    let mut deliveries: Vec<RawDelivery> = (0..20).map(|_| listener.delivery().0).collect();
    deliveries.reverse();
    for delivery in deliveries {
        listener.answer(delivery.ticket, 200, &format!("{:?}", delivery.app.unwrap()), None);
    }
    for (number, client) in clients.iter_mut().enumerate() {
        assert_eq!(client.answer(false).text(), format!("\"app-{number}\""));
    }
}

#[test]
fn a_request_that_waits_to_be_asked_is_asked() {
    let mut listener = Listener::start("hooks");
    let expect = [GITHUB.as_slice(), &[("Expect", "100-continue")]].concat();
    let mut client = Client::connect(listener.address);
    client.send(&head("POST", "/hooks/blog", &expect, Some(2)));
    assert_eq!(client.begin().status, 100);
    client.send(b"{}");
    let (delivery, frame) = listener.delivery();
    assert_eq!(&frame.body()[delivery.headers..], b"{}");
    listener.answer(delivery.ticket, 202, "{}", None);
    assert_eq!(client.answer(false).status, 202);
    // Whoever is refused need not send its body.
    let mut client = Client::connect(listener.address);
    client.send(&head("POST", "/hooks/blog", &expect, Some(MAX_BODY + 1)));
    assert_eq!(client.answer(false).status, 413);
    assert!(client.is_closed());
    assert!(listener.is_silent());
}

#[test]
fn requests_in_a_row_are_answered_in_order() {
    let mut listener = Listener::start("hooks");
    let mut client = Client::connect(listener.address);
    let requests: Vec<Vec<u8>> =
        (0..20).map(|n| [&head("POST", &format!("/hooks/app-{n}"), &GITHUB, Some(2))[..], b"{}"].concat()).collect();
    client.send(&requests.concat());
    for number in 0..20 {
        let (delivery, _) = listener.delivery();
        assert_eq!(delivery.app, Some(format!("app-{number}")));
        // The next one is not begun before.
        assert!(listener.is_silent());
        listener.answer(delivery.ticket, 200, &format!("{number}"), None);
    }
    for number in 0..20 {
        assert_eq!(client.answer(false).text(), format!("{number}"));
    }
    // A connection whose buffers were let go meanwhile goes on as before.
    thread::sleep(Duration::from_millis(1500));
    client.send(&requests[..2].concat());
    for _ in 0..2 {
        let ticket = listener.delivery().0.ticket;
        listener.answer(ticket, 202, "{}", None);
        assert_eq!(client.answer(false).status, 202);
    }
}

/// What a line of `smuggling.txt` stands for.
fn bytes_of(line: &str) -> Vec<u8> {
    let second = "POST /hooks/smuggled HTTP/1.1\r\nHost: test\r\nContent-Length: 2\r\n\r\n{}";
    let mut bytes = Vec::new();
    let mut rest = line.chars();
    while let Some(c) = rest.next() {
        match c {
            '@' => bytes.extend(b"POST /hooks/blog HTTP/1.1\r\nHost: test\r\n"),
            '%' => bytes.extend(second.as_bytes()),
            '#' => bytes.extend(second.len().to_string().as_bytes()),
            '\\' => bytes.push(match rest.next() {
                Some('r') => b'\r',
                Some('n') => b'\n',
                Some('t') => b'\t',
                Some('x') => u8::from_str_radix(&rest.by_ref().take(2).collect::<String>(), 16).unwrap(),
                other => panic!("{other:?} after a backslash: {line}"),
            }),
            c => bytes.push(u8::try_from(c).unwrap()),
        }
    }
    bytes
}

#[test]
fn no_request_hides_in_another() {
    let mut listener = Listener::start("hooks");
    let mut wrong = Vec::new();
    for line in include_str!("smuggling.txt").lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let (verdict, bytes) = line.split_once(' ').unwrap();
        let (address, bytes) = (listener.address, bytes_of(bytes.trim_start()));
        let client = thread::spawn(move || {
            let mut client = Client::connect(address);
            client.send(&bytes);
            let status = client.status();
            // If it goes on at all, then with this.
            client.send(b"GET /nothing HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n");
            client.rest();
            status
        });
        let apps = listener.answer_while(|| !client.is_finished());
        let status = client.join().unwrap();
        let right = match verdict {
            "one" => apps == ["blog"] && status == Some(200),
            // What breaks off in the middle of a body is closed at once.
            "refused" => apps.is_empty() && status.is_none_or(|status| (400..500).contains(&status)),
            other => panic!("{other}"),
        };
        if !right {
            wrong.push(format!("{line}: {status:?} {apps:?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn more_than_can_be_answered_is_told_to_come_later() {
    let mut listener = Listener::start("hooks");
    let body = vec![b'x'; INLINE_BODY];
    let request = [&head("POST", "/hooks/blog", &GITHUB, Some(body.len()))[..], &body].concat();
    // Nobody answers; 16 MiB of bodies are all that is taken.
    let room = (16 << 20) / INLINE_BODY;
    let (mut sent, mut turned_away, mut taken, begun) = (0, 0, 0, Instant::now());
    // Where the first are given up before the last come, as on a busy machine, all are taken in turn, and it is tried
    // again.
    while turned_away == 0 {
        assert!(begun.elapsed() < Duration::from_secs(120), "nobody is turned away");
        let mut clients: Vec<Client> = (0..room + 44).map(|_| Client::connect(listener.address)).collect();
        // Whoever takes long to be heard, as on a busy machine, is sent away for those who wait: nobody waits until the
        // room is full.
        for some in clients[..room].chunks_mut(16) {
            some.iter_mut().for_each(|client| assert!(client.send(&request)));
            some.iter().for_each(|_| drop(listener.delivery()));
        }
        for client in &mut clients[room..] {
            client.send(&request);
        }
        sent += clients.len();
        taken += room;
        let told: Vec<_> =
            clients.iter_mut().filter_map(|client| client.hears().then(|| client.answer(false))).collect();
        for answer in &told {
            assert_eq!((answer.status, answer.header("retry-after")), (503, Some("5")), "{}", answer.text());
        }
        let [late, away] = ["did not answer in time", "too many bodies"]
            .map(|why| told.iter().filter(|answer| answer.text().contains(why)).count());
        assert!(late > 0 && late + away == told.len(), "{late} and {away} of {}", told.len());
        turned_away = away;
    }
    // And then it goes on.
    let address = listener.address;
    let client = thread::spawn(move || {
        let mut client = Client::connect(address);
        client.send(&request);
        client.answer(false).status
    });
    taken += listener.answer_while(|| !client.is_finished()).len();
    assert_eq!(client.join().unwrap(), 200);
    assert!(taken <= sent - turned_away + 1, "{taken} were taken of {sent}, {turned_away} turned away");
}

#[test]
fn health_is_the_supervisors() {
    let mut listener = Listener::start("hooks");
    let mut client = Client::connect(listener.address);
    client.send(&head("GET", "/healthz", &[], None));
    let (message, _) = listener.hooks_message();
    let FromHooks::Health { ticket } = message else { panic!("{message:?}") };
    listener.answer(ticket, 200, "ok", None);
    let answer = client.answer(false);
    assert_eq!((answer.status, answer.text(), answer.header("content-type")), (200, "ok", Some("text/plain")));
}

#[test]
fn a_silent_supervisor_is_told_before_forges_give_up() {
    let mut listener = Listener::start("hooks");
    // It waits for 9 s, and forges for 10: what is left of these may not do on a machine that is busy just now.
    let in_time = (0..6).find_map(|_| {
        let start = Instant::now();
        let mut client = sent(listener.address);
        let (delivery, _) = listener.delivery();
        let answer = client.answer(false);
        assert_eq!((answer.status, answer.header("retry-after")), (503, Some("5")));
        (start.elapsed() < Duration::from_secs(10)).then_some((client, delivery))
    });
    let (mut client, delivery) = in_time.expect("a forge would have given up each time");
    // An answer that comes too late hurts nobody.
    listener.answer(delivery.ticket, 202, "{}", None);
    client.send(&head("GET", "/nothing", &[], None));
    assert_eq!(client.answer(false).status, 404);
}

#[test]
fn when_the_supervisor_is_gone_it_ends() {
    let mut listener = Listener::start("hooks");
    let mut idle = Client::connect(listener.address);
    idle.send(&head("GET", "/nothing", &[], None));
    assert_eq!(idle.answer(false).status, 404);
    let mut client = sent(listener.address);
    listener.delivery();
    listener.close_channels();
    assert_eq!(client.answer(false).status, 503);
    assert!(client.is_closed() && idle.is_closed());
    assert_eq!(listener.exit_code(), Some(0));
}

#[test]
fn term_answers_what_is_under_way() {
    let mut listener = Listener::start("hooks");
    let mut idle = Client::connect(listener.address);
    idle.send(&head("GET", "/nothing", &[], None));
    assert_eq!(idle.answer(false).status, 404);
    let mut client = sent(listener.address);
    let (delivery, _) = listener.delivery();
    listener.term();
    assert!(idle.is_closed());
    // It accepts no more; the supervisor holds the socket, so the next listener will.
    let mut later = Client::connect(listener.address);
    later.send(&head("POST", "/hooks/later", &[], Some(2)));
    later.send(b"{}");
    listener.answer(delivery.ticket, 202, "{}", None);
    let answer = client.answer(false);
    assert_eq!((answer.status, answer.header("connection")), (202, Some("close")));
    assert_eq!(listener.exit_code(), Some(0));
    listener.restart();
    let (delivery, _) = listener.delivery();
    assert_eq!(delivery.app.as_deref(), Some("later"));
    listener.answer(delivery.ticket, 202, "{}", None);
    assert_eq!(later.answer(false).status, 202);
}

#[test]
fn whoever_has_no_answer_when_it_leaves_is_told_so() {
    let mut listener = Listener::start("hooks");
    let mut client = sent(listener.address);
    listener.delivery();
    listener.term();
    let answer = client.answer(false);
    assert_eq!((answer.status, answer.header("retry-after")), (503, Some("5")));
    assert!(client.is_closed());
    assert_eq!(listener.exit_code(), Some(0));
}

#[test]
fn whoever_has_said_everything_is_answered() {
    let mut listener = Listener::start("hooks");
    let mut client = sent(listener.address);
    client.says_no_more();
    let (delivery, _) = listener.delivery();
    listener.answer(delivery.ticket, 202, "{}", None);
    assert_eq!(client.answer(false).status, 202);
    assert!(client.is_closed());
    // Who ends in the middle of a body has nothing to be answered.
    let mut client = Client::connect(listener.address);
    client.send(&head("POST", "/hooks/blog", &[], Some(2)));
    client.send(b"{");
    client.says_no_more();
    client.rest();
    assert!(listener.is_silent());
}

#[test]
fn killed_it_refuses_nobody() {
    let mut listener = Listener::start("hooks");
    for _ in 0..5 {
        listener.kill();
        let mut client = Client::connect(listener.address);
        client.send(&head("POST", "/hooks/blog", &[], Some(2)));
        client.send(b"{}");
        listener.restart();
        let (delivery, _) = listener.delivery();
        listener.answer(delivery.ticket, 202, "{}", None);
        assert_eq!(client.answer(false).status, 202);
    }
}

#[test]
fn it_gives_up_privileges_at_the_start() {
    let mut listener = Listener::start("hooks");
    let client = request(listener.address, "GET", "/nothing", &[], b"");
    assert_eq!(client.status, 404);
    let status = std::fs::read_to_string(format!("/proc/{}/status", listener.pid())).unwrap();
    assert!(status.lines().any(|line| line == "NoNewPrivs:\t1"), "{status}");
    assert!(listener.is_silent());
}
