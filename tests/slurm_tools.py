"""A Slurm of one node in a folder: its own munge, controller and daemon, none of which anybody else notices."""

from __future__ import annotations

import getpass
import os
import shutil
import socket
import subprocess
import time
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "sinfo", "scancel")
CONFIGURATION = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=10
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldPort={port}
SlurmdPort={second_port}
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
SchedulerParameters=sched_interval=1,batch_sched_delay=0
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobRequeue=1
KillWait=5
MpiDefault=none
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def missing_programs() -> list[str]:
    """What a one-node Slurm needs and is not installed."""
    return [name for name in PROGRAMS if _program(name) is None]


def _program(name: str) -> str | None:
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


class OneNode:
    """``with OneNode(folder) as environment``: variables under which Slurm's commands reach it. RuntimeError, with the
    daemons' last lines, where it does not come up.
    """

    def __init__(self, folder: Path) -> None:
        # short: the path of a socket may have some hundred characters
        self.folder, self.processes = folder, []
        self.environment = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf")}

    def __enter__(self) -> dict[str, str]:
        for part in ("state", "spool"):
            (self.folder / part).mkdir()
        content = CONFIGURATION.format(
            host=socket.gethostname().split(".")[0], user=getpass.getuser(), folder=self.folder, port=_free_port(),
            second_port=_free_port(), cpus=os.cpu_count(),
        )  # fmt: skip
        (self.folder / "slurm.conf").write_text(content)
        key = self.folder / "key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o400)
        paths = {"socket": "munge.socket", "key-file": "key", "pid-file": "munged.pid", "seed-file": "seed"}
        try:
            self._start("munged", "--foreground", "--force",
                        *(f"--{option}={self.folder / name}" for option, name in paths.items()))  # fmt: skip
            self._until(lambda: (self.folder / "munge.socket").exists())
            self._start("slurmctld", "-D")
            self._start("slurmd", "-D")
            self._until(self._idle)
        except BaseException:
            self.__exit__()
            raise
        return self.environment

    def __exit__(self, *_: object) -> None:
        for process in reversed(self.processes):
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def _start(self, name: str, *options: str) -> None:
        program = _program(name)
        assert program is not None
        with (self.folder / f"{name}.log").open("w") as log:
            self.processes.append(subprocess.Popen([program, *options], env=self.environment, stdout=log, stderr=log,
                                                   stdin=subprocess.DEVNULL))  # fmt: skip

    def _idle(self) -> bool:
        done = subprocess.run([str(_program("sinfo")), "-h", "-o", "%T"], env=self.environment, capture_output=True,
                              text=True, check=False)  # fmt: skip
        return done.stdout.strip() == "idle"

    def _until(self, good) -> None:
        deadline = time.monotonic() + 60
        while not good():
            dead = [process.args[0] for process in self.processes if process.poll() is not None]
            if dead or time.monotonic() > deadline:
                logs = "\n".join(path.read_text()[-1500:] for path in self.folder.glob("*.log"))
                raise RuntimeError(f"Slurm does not come up ({dead or 'time is over'}):\n{logs}")
            time.sleep(0.2)
