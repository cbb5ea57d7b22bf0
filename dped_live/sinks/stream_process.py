"""What runs in the process that sends a stream; sinks/stream.py starts it, watches it and kills it.

The two talk as child_process.py says, and the picture itself is in shared memory. From here:

    {"connecting": true}    once
    {"connected": true}     once; from now on there may be a picture
    {"taken": true}         the picture in the memory is no longer needed, and the one before has been sent
    {"failed": reason}      the last message

and to here {"picture": when it was captured}, after which the memory is this process's until it says "taken".
"""

from __future__ import annotations

import contextlib
import datetime
import socket
import tempfile
from fractions import Fraction
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from urllib.parse import urlsplit

import av
import numpy as np
from av.video.frame import PictureType

from dped_live.child_process import Parent
from dped_live.sinks.encoding import configure
from dped_live.sinks.live_video import Converter, live_format

_BETWEEN_KEYFRAMES = 2
"""Seconds, by the pictures' times: their number says little where a camera stands still."""

_BITS_PER_PIXEL = 0.1
"""At most: 2.8 Mbit/s for 1280x720 at 30, 6.2 for 1920x1080, which is what streaming services advise."""

_MUXER_OPTIONS = {"rtsp": {"rtsp_transport": "tcp"}, "flv": {"flvflags": "no_duration_filesize"}}


def send(parent: Parent, address: str, muxer: str, memory: str, width: int, height: int, frame_rate: Fraction) -> None:
    """Connect and send pictures until the parent ends it, or the connection does.

    address, muxer: for FFmpeg. width, height: of the pictures in the memory; of odd ones the last row or column is cut
    off, for hardly any receiver takes them. frame_rate: roughly.
    """
    shared = SharedMemory(memory)
    parent.tell(connecting=True)
    try:
        _find_host(address)
        with contextlib.closing(Connection(address, muxer, width & -2, height & -2, frame_rate)) as connection:
            parent.tell(connected=True)
            while True:
                message = parent.hear(1)
                if message is not None:
                    frame = connection.convert(np.ndarray((height, width, 3), np.uint8, shared.buf))
                    parent.tell(taken=True)
                    connection.send(frame, message["picture"])
    except (av.FFmpegError, OSError) as error:
        parent.tell(failed=error.strerror or str(error))


def _find_host(address: str) -> None:
    """Of a host that there is not FFmpeg says no more than "Input/output error"."""
    host = urlsplit(address).hostname
    try:
        socket.getaddrinfo(host, None)
    except socket.gaierror as error:
        raise OSError(error.errno, f"there is no host {host}") from error


class Connection:
    """An encoder and where its packets go. Every method may block for ever, and raises av.FFmpegError or OSError."""

    def __init__(self, address: str, muxer: str, width: int, height: int, frame_rate: Fraction) -> None:
        self._format = live_format(width, height, "libx264")
        self._converter = Converter(self._format)
        rate = max(500_000, round(_BITS_PER_PIXEL * width * height * frame_rate))
        options = {
            "preset": "superfast",
            "tune": "zerolatency",
            "crf": "23",
            "maxrate": str(rate),
            "bufsize": str(rate // 2),
            "forced-idr": "1",
        }
        if muxer == "whip":
            options["profile"] = "baseline"  # what every browser must be able to decode
        self._container = av.open(address, "w", format=muxer)
        self._video = self._container.add_stream("libx264", frame_rate, options=options)
        configure(self._video.codec_context, self._format)
        self._container.container_options.update(_MUXER_OPTIONS.get(muxer, {}), flush_packets="1")
        with tempfile.TemporaryDirectory() as folder:
            if muxer == "whip":
                self._container.container_options.update(_certificate(Path(folder)))
            self._container.start_encoding()
        self._begin: float | None = None
        self._time = self._keyframe_at = 0.0

    def convert(self, picture: np.ndarray) -> av.VideoFrame:
        """picture: (H, W, 3); it is read before this returns."""
        return self._converter.convert(picture[: self._format.height, : self._format.width])

    def send(self, frame: av.VideoFrame, moment: float) -> None:
        """moment: seconds; where it is not after the one before, it is moved on by the millisecond that FLV counts."""
        if self._begin is None:
            self._begin = moment
        else:
            self._time = max(self._time + 0.001, moment - self._begin)
        frame.pts = round(self._time / self._format.time_base)
        if self._time >= self._keyframe_at:
            frame.pict_type = PictureType.I
            self._keyframe_at = self._time + _BETWEEN_KEYFRAMES
        self._container.mux(self._video.encode(frame))

    def close(self) -> None:
        self._container.close()


def _certificate(folder: Path) -> dict[str, str]:
    """A new key and its certificate, in files, as options of the muxer.

    WebRTC wants the curve P-256 (RFC 8827, 6.5). FFmpeg with GnuTLS, which PyAV's is, makes a key on another, and then
    most peers break off.
    """
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "WebRTC")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=30))
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    (folder / "certificate.pem").write_bytes(certificate.public_bytes(pem))
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (folder / "key.pem").write_bytes(private)
    return {"cert_file": str(folder / "certificate.pem"), "key_file": str(folder / "key.pem")}
