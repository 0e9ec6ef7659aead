# Reads its release through `current`, as VERSION there says: a number, and how it reloads when it hears HUP.
import os, signal, socket, sys, time

current = os.environ["CURRENT"]
address = os.environ.get("NOTIFY_SOCKET")


def say(text):
    if address:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as there:
            there.sendto(text.encode(), address)


def take(*_):
    began = time.monotonic_ns() // 1000
    number, how = open(current + "/VERSION").read().split()
    if how == "exits":
        sys.exit(3)
    if how == "says_nothing":
        return
    if how == "says_old":
        say("RELOADING=1\nMONOTONIC_USEC=1")
        return say("READY=1")
    say(f"RELOADING=1\nMONOTONIC_USEC={began}")
    with open(os.environ["TAKEN"], "a") as taken:
        taken.write(number + "\n")
    say("READY=1")


signal.signal(signal.SIGHUP, take)
say("READY=1")
print("waits", flush=True)
while True:
    signal.pause()
