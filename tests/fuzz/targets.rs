//! Everything that reads bytes of others, each as a function that must not panic, whatever comes.

use std::{
    io::Write,
    net::{IpAddr, Ipv4Addr},
    os::{fd::OwnedFd, unix::net::UnixStream},
    path::Path,
    sync::LazyLock,
};

use everhook::{
    domain::{
        access::client,
        api::{
            Answer, Ask, Compared, Fetched, FromHooks, FromLogger, LogFrame, Measured, Post, Posted, Said, Sink, Tip,
            ToLogger, TreeTask,
        },
        config::{self, Dialect, Form, Places},
        hook::{self, Head, Headers, Kind, Request},
        model::{AppName, At, CommitId, Facts, InstanceId, ReleaseId, Secret, Size, parse_span},
        service::Notice,
    },
    os::channel::Channel,
};

use super::{form, routes};

/// By its name, which is that of its folder in `tests/corpus`.
pub type Target = (&'static str, fn(&[u8]));

pub const TARGETS: [Target; 10] = [
    ("config", config),
    ("env_file", env_file),
    ("delivery", delivery),
    ("channel", channel),
    ("messages", messages),
    ("notice", notice),
    ("lines", lines),
    ("routes", route),
    ("query", query),
    ("proxies", proxies),
];

fn nothing_included(_: &Path) -> Result<Vec<(std::path::PathBuf, String)>, String> {
    Ok(Vec::new())
}

fn load(text: &str) -> Result<config::Loaded, config::Faults> {
    let facts = Facts {
        uid: 1000,
        user: |_| None,
        group: |_| None,
        is_directory: |_| Some(true),
        closed: |_, _, _, _| None,
        is_program: |_| true,
        can_limit: |_| Ok(()),
        matching: nothing_included,
        zone: |_| None,
    };
    let places = Places { state_home: "/state".into() };
    config::load(text, Path::new("/etc/everhook/supervisor.ron"), &places, &facts)
}

/// `supervisor.ron`: faults have places inside the text, and a good one can be described and compared.
fn config(bytes: &[u8]) {
    match load(&String::from_utf8_lossy(bytes)) {
        Ok(loaded) => {
            assert!(loaded.config.apps.is_empty() || !config::describe(&loaded.config, At(0)).is_empty());
            assert!(config::diff(&loaded.config, &loaded.config).lines().len() <= 1, "it differs from itself");
        }
        Err(faults) => assert!(!faults.to_string().is_empty()),
    }
}

fn env_file(bytes: &[u8]) {
    let _ = config::env_file(&String::from_utf8_lossy(bytes));
}

const DIALECTS: [Dialect; 10] = [
    Dialect::GitHub,
    Dialect::GitLab,
    Dialect::Gitea,
    Dialect::Forgejo,
    Dialect::Gogs,
    Dialect::BitbucketCloud,
    Dialect::BitbucketDataCenter,
    Dialect::Gitee,
    Dialect::AzureDevOps,
    Dialect::StandardWebhooks,
];

/// Senders that a config describes, one for each kind of proof.
static GENERIC: LazyLock<Vec<Dialect>> = LazyLock::new(|| {
    let proofs = [
        "Hmac(header: \"X-Signature\", prefix: \"sha256=\", hash: Sha256, encoding: Hex)",
        "Hmac(header: \"X-Signature\", hash: Sha512, encoding: Base64)",
        "Bearer",
        "Standard",
    ];
    let one = |proof: &str| {
        let text = format!(
            "(apps: {{\"a\": (deploy: (repo: \"https://h/r\", secret: Env(\"S\"), dialect: Generic(proof: {proof}, \
             ref: \"/ref\", commit: \"/after\", repository: \"/repository/full_name\", event: \"X-Event\")))}})"
        );
        let loaded = load(&text).unwrap_or_else(|faults| panic!("{faults}"));
        loaded.config.apps.values().next().unwrap().deploy.as_ref().unwrap().dialect.clone().unwrap()
    };
    proofs.iter().map(|proof| one(proof)).collect()
});

/// Headers, an empty line, the body: nobody proves a secret that is in neither, and what is read is fit to be kept.
fn delivery(bytes: &[u8]) {
    let end = bytes.windows(2).position(|pair| pair == b"\n\n").unwrap_or(bytes.len());
    let (head, body) = (&bytes[..end], bytes.get(end + 2..).unwrap_or_default());
    let head = String::from_utf8_lossy(head);
    let pairs = head.lines().filter_map(|line| line.split_once(": "));
    let headers: Headers<'_> =
        pairs.map(|(name, value)| (name.to_lowercase(), value.to_owned())).collect::<Vec<_>>().into();
    let secret = Secret::new(b"a secret that no corpus holds".to_vec());
    let request = Request { headers: &headers, body, at: At(1_774_699_200_000) };
    let recognised = hook::recognise(&headers);
    for dialect in DIALECTS.iter().chain(&*GENERIC).chain(&recognised) {
        assert!(!hook::proves(Some(dialect), &request, &secret, false), "{dialect:?} proves without the secret");
        let why = hook::why_unproven(Some(dialect), &request);
        assert!(!why.is_empty() && why.len() < 500, "{why}");
        let own = hook::head(dialect, &headers);
        let event = own.event.clone();
        let again = Head::again(Some(event), own.sender_id.clone(), body);
        for head in [own, again] {
            match hook::parse(dialect, head, body) {
                Ok(parsed) => judge(&parsed),
                Err(why) => assert!(why.to_string().len() < 2000 && !why.to_string().contains('\n'), "{why}"),
            }
        }
    }
}

fn judge(parsed: &hook::Parsed) {
    let plain = |text: &str| assert!(!text.chars().any(char::is_control) && text.chars().count() <= 1024, "{text:?}");
    plain(&parsed.event);
    parsed.sender_id.iter().chain(&parsed.sender).chain(&parsed.repository.urls).for_each(|text| plain(text));
    plain(&parsed.repository.full_name);
    match &parsed.kind {
        Kind::Ping => {}
        Kind::Other { why } => plain(why),
        Kind::Changes(changes) => {
            assert!(!changes.is_empty());
            for change in changes {
                plain(&change.ref_name);
                assert!(change.ref_name.starts_with("refs/"));
                assert!(!(change.deleted && change.after.is_some()));
                change.subject.iter().chain(&change.author).for_each(|text| plain(text));
            }
        }
    }
}

/// What a process at the other end of a channel may send.
fn channel(bytes: &[u8]) {
    let Ok((mut theirs, ours)) = UnixStream::pair() else { return };
    let _ = ours.set_nonblocking(true);
    let _ = theirs.set_nonblocking(true);
    let mut channel = Channel::new(OwnedFd::from(ours));
    let sent = theirs.write(bytes).unwrap_or(0);
    drop(theirs);
    // A frame is eight bytes at least.
    for _ in 0..=sent / 8 {
        let Ok(frame) = channel.receive() else { return };
        let _ = frame.message::<FromHooks>();
        messages(frame.head());
    }
    panic!("more frames than bytes");
}

/// The head of a frame, of every kind that there is.
fn messages(bytes: &[u8]) {
    fn read<T: serde::Serialize + serde::de::DeserializeOwned>(bytes: &[u8]) {
        if let Ok(message) = serde_json::from_slice::<T>(bytes) {
            let text = serde_json::to_vec(&message).expect("what was read can be written");
            assert!(serde_json::from_slice::<T>(&text).is_ok(), "{}", String::from_utf8_lossy(&text));
        }
    }
    read::<FromHooks>(bytes);
    read::<Answer>(bytes);
    read::<Ask>(bytes);
    read::<Said>(bytes);
    read::<FromLogger>(bytes);
    read::<ToLogger>(bytes);
    read::<LogFrame>(bytes);
    read::<TreeTask>(bytes);
    read::<Fetched>(bytes);
    read::<Compared>(bytes);
    read::<Measured>(bytes);
    read::<Vec<Tip>>(bytes);
    read::<Post>(bytes);
    read::<Posted>(bytes);
}

/// `sd_notify`: what is read of a message.
fn notice(bytes: &[u8]) {
    if let Some(notice) = Notice::parse(bytes) {
        assert_ne!(notice, Notice::default());
        assert_ne!(notice.main_pid, Some(0));
    }
}

/// An app's output, written in pieces in every form, and read again line by line.
fn lines(bytes: &[u8]) {
    let Some((first, output)) = bytes.split_first() else { return };
    for (form, pieces) in [(Form::Raw, 1), (Form::Stamped, 7), (Form::Json, 3)] {
        let line_limit = Size(if form == Form::Raw { u64::MAX } else { u64::from(*first) });
        let sink = Sink::raw("/logs/a/a.1.out.log".into(), None, 1);
        let Sink { path, how } = sink.with(|how| (how.form, how.line_limit) = (form, line_limit));
        let written = written(&form::Pen::of(&path, &how), output, pieces);
        assert!(form != Form::Raw || written == output, "raw lines are as they came");
        let mut reading = form::Reading::new(form);
        for line in written.split_inclusive(|b| *b == b'\n') {
            let whole = line.ends_with(b"\n");
            let json = form != Form::Json || !whole || serde_json::from_slice::<serde_json::Value>(line).is_ok();
            assert!(json, "no JSON: {}", line.escape_ascii());
            assert!(
                form == Form::Raw || !whole || reading.line(line, whole).at == Some(At(0)),
                "{}",
                line.escape_ascii()
            );
        }
    }
}

fn written(pen: &form::Pen, output: &[u8], pieces: usize) -> Vec<u8> {
    let (mut tip, mut written) = (form::Tip::CLOSED, Vec::new());
    for piece in output.chunks(output.len() / pieces + 1) {
        let mut rest = piece;
        while !rest.is_empty() {
            let mut page = [0; 4096];
            let (taken, filled) = pen.write(&mut tip, At(0), rest, &mut page);
            assert!(taken > 0 && taken <= rest.len() && filled <= page.len(), "{taken} of {}, {filled}", rest.len());
            rest = &rest[taken..];
            written.extend_from_slice(&page[..filled]);
            assert_eq!(form::Tip::from_words(tip.words()), tip);
        }
    }
    written
}

/// A path of a request.
fn route(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    if let Some(routes::Route::Hook(Some(name))) = routes::Route::find(&text) {
        assert!(name.chars().count() <= 64, "{name}");
    }
}

/// The part of a request's target behind `?`, and what each parameter is read as.
fn query(bytes: &[u8]) {
    for name in ["app", "n", "wait", "since", "grep"] {
        let Ok(Some(value)) = hook::field(bytes, name) else { continue };
        assert!(value.len() <= bytes.len());
        let Ok(text) = std::str::from_utf8(&value) else { continue };
        if let Ok(name) = text.parse::<AppName>() {
            assert!(name.to_string() == text && text.len() <= 63, "{text:?}");
        }
        let _ = parse_span(text);
        let _ = text.parse::<At>().map(|at| at.to_string());
        let _ = text.parse::<InstanceId>().map(|id| id.to_string());
        let _ = text.parse::<ReleaseId>().map(|id| id.to_string());
        let _ = text.parse::<CommitId>().map(|id| id.to_string());
    }
}

/// `X-Forwarded-For`, a line each, and behind an empty line `Forwarded`: only who is trusted is believed.
fn proxies(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let (plain, forwarded) = text.split_once("\n\n").unwrap_or((&text, ""));
    let (peer, stranger) = (IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)));
    let trusted = ["127.0.0.0/8".parse().unwrap(), "2001:db8::/32".parse().unwrap()];
    let found = |peer| client(peer, plain.lines(), forwarded.lines(), &trusted);
    assert_eq!(found(stranger), Some(stranger));
    assert!(found(peer).is_none_or(|found| found == found.to_canonical()));
}
