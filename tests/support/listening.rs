//! A listener process, and the test in its supervisor's place.
#![allow(dead_code, reason = "each test file uses its part")]

use std::{
    io,
    net::{SocketAddr, TcpListener},
    os::fd::{AsFd, OwnedFd},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use everhook::{
    domain::api::{Answer, Ask, FromHooks, RawDelivery, Said, Saying},
    os::channel::{Channel, Frame},
};
use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::signal::Signal,
    unistd::Pid,
};

/// Nothing in these tests takes longer.
const DEADLINE: Duration = Duration::from_secs(60);

pub struct Listener {
    pub address: SocketAddr,
    serve: String,
    socket: TcpListener,
    child: Child,
    /// In the order of descriptors.
    channels: Vec<Channel>,
}

impl Listener {
    /// `serve`: `hooks`, `api` or both.
    pub fn start(serve: &str) -> Self {
        let socket = TcpListener::bind("127.0.0.1:0").unwrap();
        socket.set_nonblocking(true).unwrap();
        let (child, channels) = spawn(serve, &socket);
        Self { address: socket.local_addr().unwrap(), serve: serve.into(), socket, child, channels }
    }

    /// Another process on the same socket.
    pub fn restart(&mut self) {
        (self.child, self.channels) = spawn(&self.serve, &self.socket);
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    pub fn term(&self) {
        let pid = Pid::from_raw(i32::try_from(self.pid()).unwrap());
        nix::sys::signal::kill(pid, Signal::SIGTERM).unwrap();
    }

    pub fn exit_code(&mut self) -> Option<i32> {
        let deadline = Instant::now() + DEADLINE;
        while Instant::now() < deadline {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code();
            }
            std::thread::yield_now();
        }
        panic!("it does not end");
    }

    pub fn close_channels(&mut self) {
        self.channels.clear();
    }

    /// Did nothing come over any channel?
    pub fn is_silent(&mut self) -> bool {
        self.channels.iter_mut().all(|c| matches!(c.receive(), Err(e) if e.kind() == io::ErrorKind::WouldBlock))
    }

    pub fn hooks_message(&mut self) -> (FromHooks, Frame) {
        let frame = receive(&mut self.channels[0]);
        (frame.message().unwrap(), frame)
    }

    pub fn delivery(&mut self) -> (RawDelivery, Frame) {
        match self.hooks_message() {
            (FromHooks::Delivery(delivery), frame) => (delivery, frame),
            other => panic!("{other:?}"),
        }
    }

    /// Answers every delivery 200 as long as `going` says so: their apps.
    pub fn answer_while(&mut self, mut going: impl FnMut() -> bool) -> Vec<String> {
        let mut apps = Vec::new();
        loop {
            let last = !going();
            match self.channels[0].receive() {
                Ok(frame) => match frame.message().unwrap() {
                    FromHooks::Delivery(delivery) => {
                        self.answer(delivery.ticket, 200, "{}", None);
                        apps.push(delivery.app.unwrap_or_default());
                    }
                    other @ FromHooks::Health { .. } => panic!("{other:?}"),
                },
                Err(e) if e.kind() == io::ErrorKind::WouldBlock && last => return apps,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    let mut fds = [PollFd::new(self.channels[0].as_fd(), PollFlags::POLLIN)];
                    poll(&mut fds, PollTimeout::from(5u16)).unwrap();
                }
                Err(e) => panic!("the listener is gone: {e}"),
            }
        }
    }

    pub fn answer(&mut self, ticket: u64, status: u16, body: &str, retry_after: Option<u32>) {
        let answer = Answer { ticket, status, body: body.into(), retry_after };
        self.channels[0].queue(&answer, answer.body.as_bytes(), None);
        assert!(self.channels[0].flush().unwrap());
    }

    pub fn question(&mut self) -> Ask {
        receive(self.channels.last_mut().unwrap()).message().unwrap()
    }

    pub fn say(&mut self, ticket: u64, what: Saying) {
        let channel = self.channels.last_mut().unwrap();
        channel.queue(&Said { ticket, what }, &[], None);
        assert!(channel.flush().unwrap());
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The standard streams carry the descriptors to the shell, which puts them where they belong: no
/// descriptor of this process is ever inheritable, so tests may run side by side.
fn spawn(serve: &str, socket: &TcpListener) -> (Child, Vec<Channel>) {
    let (mut channels, mut theirs) = (Vec::new(), Vec::new());
    for _ in serve.split(',') {
        let (ours, other) = Channel::pair().unwrap();
        channels.push(ours);
        theirs.push(Stdio::from(other));
    }
    let mut theirs = theirs.into_iter();
    let script = "exec \"$0\" listener --serve \"$1\" 3<&0 4<&1 5<&2 0</dev/null 1>/dev/null 2>/dev/null";
    let child = Command::new("/bin/sh")
        .args(["-c", script, env!("CARGO_BIN_EXE_everhook"), serve])
        .stdin(OwnedFd::from(socket.try_clone().unwrap()))
        .stdout(theirs.next().unwrap())
        .stderr(theirs.next().unwrap_or_else(Stdio::null))
        .spawn()
        .unwrap();
    (child, channels)
}

fn receive(channel: &mut Channel) -> Frame {
    let deadline = Instant::now() + DEADLINE;
    loop {
        match channel.receive() {
            Ok(frame) => return frame,
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            Err(e) => panic!("the listener is gone: {e}"),
        }
        assert!(Instant::now() < deadline, "nothing came");
        let mut fds = [PollFd::new(channel.as_fd(), PollFlags::POLLIN)];
        poll(&mut fds, PollTimeout::from(1000u16)).unwrap();
    }
}
