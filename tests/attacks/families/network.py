"""Reaching anything but its own loopback. The grader listens on its own, and nobody may knock."""
from submitted import attack


@attack("sgd_step", "error", says=r"reached: \[\]", open=r"reached: \['host")
def loopback_of_the_host():
    """Connects to a service on the grader's own loopback, by name and by both addresses."""
    import socket

    def sgd_step(param, grad, state, lr=0.1):
        reached = []
        for host in ("127.0.0.1", "localhost", "0.0.0.0"):
            try:
                with socket.create_connection((host, KNOWN["port"]), timeout=1) as connection:
                    connection.sendall(b"the inputs of the hidden tests")
                reached.append("host")
            except OSError:
                pass
        raise AssertionError(f"reached: {reached}")


@attack("sgd_step", "error", says=r"reached: \[\]", open=r"reached: \['unix")
def unix_sockets_of_the_host():
    """Connects to an abstract Unix socket: no file protects it, and on a desktop the message bus is one."""
    import socket

    def sgd_step(param, grad, state, lr=0.1):
        reached = []
        for address in ("\0" + KNOWN["abstract"], "/var/run/docker.sock", "/run/dbus/system_bus_socket"):
            try:
                with socket.socket(socket.AF_UNIX) as connection:
                    connection.connect(address)
                reached.append("unix")
            except OSError:
                pass
        raise AssertionError(f"reached: {reached}")


@attack("sgd_step", "error", says=r"reached: \[\]")
def the_outside():
    """Sends what it has seen to the outside: TCP, UDP, IPv6, the name service, a virtual machine's host."""
    import socket

    def sgd_step(param, grad, state, lr=0.1):
        reached = []
        for family, kind, address in ((socket.AF_INET, socket.SOCK_STREAM, ("192.0.2.1", 80)),
                                      (socket.AF_INET, socket.SOCK_DGRAM, ("192.0.2.1", 53)),
                                      (socket.AF_INET6, socket.SOCK_DGRAM, ("2001:db8::1", 53)), (40, socket.SOCK_STREAM, (2, 22))):
            try:
                with socket.socket(family, kind) as connection:
                    connection.settimeout(1)
                    connection.connect(address)
                reached.append(str(address))
            except OSError:
                pass
        try:
            reached.append(socket.gethostbyname("example.org"))
        except OSError:
            pass
        raise AssertionError(f"reached: {reached}")


@attack("sgd_step", "error", says=r"reached: \[\]")
def raw_packets():
    """Opens raw and packet sockets, to listen to or forge what others send."""
    import socket

    def sgd_step(param, grad, state, lr=0.1):
        reached = []
        for family, kind, protocol in ((socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP), (socket.AF_PACKET, socket.SOCK_RAW, 3)):
            try:
                socket.socket(family, kind, protocol).close()
                reached.append(str(family))
            except OSError:
                pass
        raise AssertionError(f"reached: {reached}")
