"""A server on its held sockets: says which process and version answers. On TERM it answers what it has
accepted, and no more. `slow` in a request's path makes it take its time. A file `hang` next to it makes
it never accept, `broken` answer 500."""
import os, select, signal, socket, sys, threading

assert os.environ["LISTEN_PID"] == str(os.getpid())
count = int(os.environ["LISTEN_FDS"])
names = os.environ["LISTEN_FDNAMES"].split(":")
assert len(names) == count
version = os.environ.get("VERSION") or open("VERSION").read().strip()
sockets = {name: socket.socket(fileno=3 + n) for n, name in enumerate(names)}
print("sockets", " ".join(names), flush=True)
stop_read, stop_write = os.pipe()
os.set_blocking(stop_write, False)
signal.set_wakeup_fd(stop_write)
signal.signal(signal.SIGTERM, lambda *_: None)
if os.path.exists(os.environ.get("BREAK", "/nonexistent") + "/hang"):
    os.read(stop_read, 1)
    sys.exit(0)
broken = os.path.exists(os.environ.get("BREAK", "/nonexistent") + "/broken")


def answer(connection):
    with connection:
        request = b""
        while b"\r\n\r\n" not in request:
            more = connection.recv(4096)
            if not more:
                return
            request += more
        if b"slow" in request:
            threading.Event().wait(0.5)
        body = f"{version} {os.getpid()}\n".encode()
        status = b"500 Broken" if broken else b"200 OK"
        head = b"HTTP/1.1 " + status + b"\r\nContent-Length: %d\r\nConnection: close\r\n\r\n"
        connection.sendall(head % len(body) + body)


listening = [s for s in sockets.values() if s.type == socket.SOCK_STREAM]
udp = [s for s in sockets.values() if s.type == socket.SOCK_DGRAM]
# Another process may have the same sockets, and take first what both of them see.
for s in listening + udp:
    s.setblocking(False)
while True:
    ready = select.select([stop_read, *listening, *udp], [], [])[0]
    if stop_read in ready:
        break
    for s in ready:
        try:
            if s in udp:
                _, sender = s.recvfrom(100)
                s.sendto(version.encode(), sender)
                continue
            connection = s.accept()[0]
        except BlockingIOError:
            continue
        connection.setblocking(True)
        threading.Thread(target=answer, args=(connection,)).start()
