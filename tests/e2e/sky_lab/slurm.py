"""A Slurm cluster on loopback: munge, the controller, a login node with sshd, and nodes with pretend GPUs.

Needs root and Debian's packages, which it installs. No systemd, no cgroups; outside its folder only the job user.
"""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import stat
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sky_lab.processes import Daemon, LabError, run, wait_for

HERE = Path(__file__).resolve().parent
SHIMS = HERE / "shims"
PACKAGES = {
    "slurmctld": "slurm-wlm",
    "munged": "munge",
    "sshd": "openssh-server",
    "rsync": "rsync",
    "unshare": "util-linux",
}
"""Program -> the Debian package that has it."""
SBIN = "/usr/sbin:/sbin:/usr/local/sbin"
TMP = Path("/tmp")
"""Each node has one of its own."""
SSH_PORT = 22722
CONTROLLER_PORT = 22717
NODE_PORT = 22710


@dataclass(frozen=True)
class Cluster:
    """What it is made of. Pretend figures: jobs on it share the processors of this machine."""

    folder: Path
    nodes: int = 2
    cpus: int = 8
    memory_mb: int = 12000
    gpu: str = "H100"
    gpus: int = 8
    name: str = "loop"
    user: str = "ft-sky-job"
    partition: str = "main"
    visible: tuple[Path, ...] = ()
    """What jobs must be able to read, wherever it lies."""
    runtime: Path = Path()
    """The virtual environment with SkyPilot that stands in for the one that it would install on the nodes."""

    @property
    def conf(self) -> Path:
        return self.folder / "etc" / "slurm.conf"

    @property
    def home(self) -> Path:
        """The job user's home: a file system that all nodes share."""
        return self.folder / "home"

    @property
    def environment(self) -> dict[str, str]:
        """What `squeue` and its like need."""
        return {**os.environ, "SLURM_CONF": str(self.conf)}

    @property
    def node_names(self) -> list[str]:
        return [f"n{number}" for number in range(1, self.nodes + 1)]

    def daemon(self, name: str) -> Daemon:
        return Daemon(self.folder, name)

    def up(self, *, until_parent_ends: bool = True) -> None:
        """Idempotent. Raises: LabError."""
        require_programs()
        self._make_user()
        self._make_folders()
        self._write_settings()
        self._start(until_parent_ends)

    def down(self) -> None:
        """The nodes first: what runs on them goes with them."""
        for name in [*self.node_names, "login", "slurmctld", "munged"]:
            self.daemon(name).stop()

    def kill_node(self, name: str) -> None:
        """As a power failure would: nothing on it gets a signal it could handle."""
        self.daemon(name).stop()

    def command(self, *words: str) -> str:
        """`squeue`, `scancel`, `sinfo` as root. Raises: LabError."""
        return run(*words, environment=self.environment)

    def allocations(self) -> dict[str, str]:
        """Job id -> name, of all that wait or run."""
        lines = self.command("squeue", "--noheader", "--format=%i %j").splitlines()
        return dict(line.split(maxsplit=1) for line in lines)

    def status(self) -> str:
        names = ["munged", "slurmctld", "login", *self.node_names]
        return "".join(f"{name:10} {self.daemon(name).pid or 'down'}\n" for name in names)

    # -------------------------------------------------------------------------------------- making

    def _make_user(self) -> None:
        try:
            known = pwd.getpwnam(self.user)
        except KeyError:
            run("useradd", "--no-create-home", "--home-dir", self.home, "--shell", "/bin/bash", self.user)  # fmt: skip
            run("usermod", "--password", "*", self.user)  # sshd refuses a locked account.
        else:
            if known.pw_dir != str(self.home):
                run("usermod", "--home", self.home, self.user)

    def _make_folders(self) -> None:
        for name in ("etc", "run", "log", "tmp", "home/.ssh", "spool/munge", "spool/slurmctld"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        for node in ("login", *self.node_names):
            for path in (self.folder / "tmp" / node, self.folder / "spool" / node):
                path.mkdir(parents=True, exist_ok=True)
            (self.folder / "tmp" / node).chmod(0o1777)
        Path("/run/sshd").mkdir(exist_ok=True)
        for owner, names in {
            "munge": ("spool/munge",),
            "slurm": ("spool/slurmctld",),
            self.user: ("home", "home/.ssh"),
        }.items():
            for name in names:
                shutil.chown(self.folder / name, owner, owner)
        (self.home / ".ssh").chmod(0o700)

    def _write_settings(self) -> None:
        etc = self.folder / "etc"
        for key in ("id_ed25519", "ssh_host_ed25519"):
            if not (etc / key).exists():
                run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", etc / key)
        authorized = self.home / ".ssh" / "authorized_keys"
        authorized.write_text((etc / "id_ed25519.pub").read_text())
        shutil.chown(authorized, self.user, self.user)
        authorized.chmod(0o600)
        if not (etc / "munge.key").exists():
            (etc / "munge.key").write_bytes(os.urandom(128))
        (etc / "munge.key").chmod(0o400)
        shutil.chown(etc / "munge.key", "munge", "munge")
        for name, text in self._settings().items():
            (etc / name).write_text(text)
        (etc / "task_prolog.sh").chmod(0o755)

    def _settings(self) -> dict[str, str]:
        hosts = "".join(f"{address} {name}\n" for name, address in self._addresses().items())
        devices = f"Name=gpu Type={self.gpu} Count={self.gpus} File=/dev/tty[0-{self.gpus - 1}]\n"
        return {
            "hosts": "127.0.0.1 localhost\n" + hosts,
            "visible": "".join(f"{top}\t{path}\n" for top, path in hidden(self.visible)),
            "slurm.conf": self._slurm_conf(),
            # Devices that nobody opens: no plugin guards them.
            "gres.conf": devices if self.gpus else "",
            "task_prolog.sh": self._task_prolog(),
            "sshd_config": self._sshd_config(),
        }

    def _addresses(self) -> dict[str, str]:
        nodes = {name: f"127.0.0.{10 + n}" for n, name in enumerate(self.node_names, start=1)}
        return {"login": "127.0.0.10", **nodes}

    def _task_prolog(self) -> str:
        """What it prints goes into the environment of each task: the shims before all other programs."""
        return (
            "#!/bin/bash\n"
            f'echo "export PATH={SHIMS}:$PATH"\n'
            f'echo "export FT_SKY_RUNTIME={self.runtime}"\n'
            f'echo "export SLURM_CONF={self.conf}"\n'
        )

    def _sshd_config(self) -> str:
        etc = self.folder / "etc"
        return (
            f"Port {SSH_PORT}\nListenAddress 127.0.0.1\nHostKey {etc}/ssh_host_ed25519\nPidFile none\n"
            "UsePAM no\nPasswordAuthentication no\nPrintMotd no\nMaxSessions 200\nMaxStartups 200\n"
            f"AllowUsers {self.user}\nSetEnv SLURM_CONF={self.conf}\nSubsystem sftp internal-sftp\n"
        )

    def _slurm_conf(self) -> str:
        spool = self.folder / "spool"
        gres = f" Gres=gpu:{self.gpu}:{self.gpus}" if self.gpus else ""
        nodes = "".join(
            f"NodeName={name} NodeHostname={name} NodeAddr={self._addresses()[name]} Port={NODE_PORT + number}"
            f" CPUs={self.cpus} RealMemory={self.memory_mb}{gres} State=UNKNOWN\n"
            for number, name in enumerate(self.node_names, start=1)
        )
        return (
            f"ClusterName={self.name}\n"
            f"SlurmctldHost={socket.gethostname().partition('.')[0]}(127.0.0.1)\n"
            f"SlurmctldPort={CONTROLLER_PORT}\n"
            "SlurmUser=slurm\n"
            f"AuthType=auth/munge\nAuthInfo=socket={spool}/munge/socket\nCryptoType=crypto/munge\n"
            f"StateSaveLocation={spool}/slurmctld\nSlurmdSpoolDir={spool}/%n\n"
            f"SlurmctldPidFile={spool}/slurmctld/pid\nSlurmdPidFile={spool}/%n/pid\n"
            # No systemd, no cgroups, no accounting; pretend processors and memory.
            "ProctrackType=proctrack/linuxproc\nTaskPlugin=task/none\n"
            "JobAcctGatherType=jobacct_gather/none\nAccountingStorageType=accounting_storage/none\n"
            "MpiDefault=none\nSwitchType=switch/none\nSchedulerType=sched/backfill\n"
            "SelectType=select/cons_tres\nSelectTypeParameters=CR_CPU_Memory\nSlurmdParameters=config_overrides\n"
            # A node that was killed comes back by itself; an allocation that is lost is not queued anew.
            "ReturnToService=2\nJobRequeue=0\nSlurmdTimeout=20\nSlurmctldTimeout=20\nKillWait=5\nMinJobAge=60\n"
            # Not NoInAddrAny: a node calls back the address a call came from, which is 127.0.0.1 for all of them.
            "CommunicationParameters=NoCtldInAddrAny\n"
            f"TaskProlog={self.folder}/etc/task_prolog.sh\nGresTypes=gpu\n{nodes}"
            f"PartitionName={self.partition} Nodes=ALL Default=YES DefaultTime=02:00:00 MaxTime=04:00:00 State=UP\n"
        )

    # ------------------------------------------------------------------------------------ starting

    def _start(self, until_parent_ends: bool) -> None:
        etc, spool = self.folder / "etc", self.folder / "spool"
        munged: Sequence[str | Path] = (
            "runuser", "-u", "munge", "--", program("munged"), "--foreground",
            f"--key-file={etc}/munge.key", f"--socket={spool}/munge/socket", f"--pid-file={spool}/munge/pid",
            f"--log-file={spool}/munge/log", f"--seed-file={spool}/munge/seed",
        )  # fmt: skip
        self.daemon("munged").start(munged, until_parent_ends=until_parent_ends)
        wait_for(lambda: _is_socket(spool / "munge/socket"), 20, "munged does not answer")
        controller: list[str | Path] = [program("slurmctld"), "-D", "-f", self.conf]
        self.daemon("slurmctld").start(controller, until_parent_ends=until_parent_ends)
        sshd: list[str | Path] = [program("sshd"), "-D", "-e", "-f", etc / "sshd_config"]
        self._start_machine("login", sshd, until_parent_ends)
        for name in self.node_names:
            self._start_machine(name, self._slurmd(name), until_parent_ends)
        wait_for(self._ready, 60, "the nodes are not idle")

    def start_node(self, name: str) -> None:
        """One that was killed, again."""
        self._start_machine(name, self._slurmd(name), True)
        wait_for(self._ready, 60, f"{name} does not come back")

    def _slurmd(self, name: str) -> list[str | Path]:
        return [program("slurmd"), "-D", "-f", self.conf, "-N", name]

    def _start_machine(
        self, name: str, command: Sequence[str | Path], until_parent_ends: bool
    ) -> None:
        self.daemon(name).start(
            ["bash", HERE / "node.sh", name, self.folder, *command],
            namespaces=("--uts", "--propagation", "private"),
            until_parent_ends=until_parent_ends,
        )

    def _ready(self) -> bool:
        for name in ["munged", "slurmctld", "login", *self.node_names]:
            if self.daemon(name).pid is None:
                raise LabError(f"{name} has ended:\n{self.daemon(name).tail()}")
        done = subprocess.run(
            ["sinfo", "--noheader", "--Node", "--states=idle,alloc,mix", "--format=%N"],
            env=self.environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
        return sorted(done.stdout.split()) == self.node_names and _listens(SSH_PORT)


def program(name: str) -> str:
    """Where it is: these lie where only root looks. Raises: LabError."""
    found = shutil.which(name, path=f"{os.environ.get('PATH', os.defpath)}:{SBIN}")
    if found is None:
        raise LabError(f"{name} is not here: apt-get install {PACKAGES.get(name, name)}")
    return found


def require_programs() -> None:
    """Install what is missing. Raises: LabError where that is not possible."""
    if os.geteuid() != 0:
        raise LabError("the lab needs root: it starts a Slurm cluster, in namespaces")
    path = f"{os.environ.get('PATH', os.defpath)}:{SBIN}"
    missing = sorted({p for tool, p in PACKAGES.items() if not shutil.which(tool, path=path)})
    if not missing:
        return
    if shutil.which("apt-get") is None:
        raise LabError(f"not here: {', '.join(missing)}; the lab installs them by apt-get only")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    run("apt-get", "update", "-qq", environment=environment)
    options = ("-y", "-qq", "--no-install-recommends")
    run("apt-get", "install", *options, *missing, environment=environment)


def hidden(paths: Sequence[Path]) -> list[tuple[Path, Path]]:
    """(the folder that others may not enter, or that each node has of its own, path), where a path lies below one."""
    found = []
    for path in dict.fromkeys(paths):
        own = [TMP] if TMP in path.parents else []
        blocked = own or [p for p in reversed(path.parents) if not p.stat().st_mode & stat.S_IXOTH]
        if blocked:
            found.append((blocked[0], path))
    return found


def _is_socket(path: Path) -> bool:
    return path.exists() and stat.S_ISSOCK(path.stat().st_mode)


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def client_settings(cluster: Cluster) -> Mapping[str, str]:
    """SkyPilot's view of it: the content of ~/.slurm/config."""
    return {
        ".slurm/config": (
            f"Host {cluster.name}\n  HostName 127.0.0.1\n  Port {SSH_PORT}\n  User {cluster.user}\n"
            f"  IdentityFile {cluster.folder}/etc/id_ed25519\n  IdentitiesOnly yes\n"
        )
    }
