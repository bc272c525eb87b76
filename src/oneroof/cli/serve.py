"""`oneroof serve`: a model behind HTTP, for OpenAI's clients."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path

from oneroof import log
from oneroof.cli.options import ModelOptions, as_flags
from oneroof.errors import UserError
from oneroof.serve.limits import Limits


@dataclass(frozen=True, kw_only=True)
class Serve(ModelOptions):
    """Serve a model over HTTP, with OpenAI's chat, completions, embeddings and more."""

    host: str = "127.0.0.1"
    """Address to listen on; 127.0.0.1 is reached from this machine alone, 0.0.0.0 from others too."""

    port: int = 8000
    """Port to listen on; 0 takes one that is free."""

    api_key_file: Path | None = None
    """A file with a key a line; requests need one of them. ONEROOF_API_KEY holds further ones."""

    admin_key_file: Path | None = None
    """The same for administrators' routes, which users' keys do not open. ONEROOF_ADMIN_KEY holds further
    ones."""

    insecure: bool = False
    """Allow an address that other machines reach although no key is set."""

    served_model_name: tuple[str, ...] = ()
    """What requests call the model; the folder's name or the hub id where not given."""

    limits: Limits = field(default_factory=Limits)
    """What requests may ask for"""

    def run(self) -> int:
        """Serve until a signal comes; 0 then."""
        self._refuse_unserved()
        try:
            from oneroof.serve.run import Place, serve  # torch, FastAPI: not for --help
        except ModuleNotFoundError as error:
            if str(error.name).partition(".")[0] == "oneroof":
                raise
            raise UserError(
                f"serve needs the package {error.name}; the extra has it; try pip install 'oneroof[serve]'"
            ) from None
        from oneroof.engine.options import EngineOptions
        from oneroof.engine.wire import Load
        from oneroof.serve.keys import ADMINS, USERS, read_keys

        place = Place(
            host=self.host,
            port=self.port,
            users=read_keys(self.api_key_file, USERS),
            admins=read_keys(self.admin_key_file, ADMINS),
            insecure=self.insecure,
        )
        with as_flags([one.name for one in fields(self) if one.kw_only]):
            options = EngineOptions(
                kv_memory=self.kv_memory,
                kv=self.kv,
                page_size=self.page_size,
                max_model_len=self.max_model_len,
                max_batch=self.max_batch,
                max_batch_tokens=self.max_batch_tokens,
                device_memory=self.device_memory,
                reserve_memory=self.reserve_memory,
            )
        order = Load(
            model=self.model,
            device=self.device,
            dtype=self.dtype,
            threads=self.threads,
            bind_cpu=self.bind_cpu,
            random_weights=self.random_weights,
            layers=self.layers,
            quantization=self.quantization,
            packed_cache=self.packed_cache,
            seed=self.seed,
            revision=self.revision,
            hub=self.hub,
            options=options,
            tp=self.tp,
            pp=self.pp,
            ep=self.ep,
            log_dir=None if self.log_dir is None else str(self.log_dir),
        )
        if self.log_dir is not None:
            log.to_file(self.log_dir / "serve.log")
        serve(order, self._names(), place, self.limits, log.progress("loading"))
        return 0

    def _names(self) -> list[str]:
        if self.served_model_name:
            return list(dict.fromkeys(self.served_model_name))
        folder = Path(self.model).expanduser()
        return [folder.resolve().name if folder.is_dir() else self.model]

    def _refuse_unserved(self) -> None:
        """UserError for options that other commands have and this one does not serve."""
        if not 0 <= self.port <= 65535:
            raise UserError(f"--port {self.port} was given; 0 to 65535 is allowed; try 8000")
        if self.dp > 1:
            raise UserError(f"--dp {self.dp} was given; serve has one engine in this version; leave it out")
        if self.engine != "paged":
            raise UserError(f"--engine {self.engine} was given; serve has the paged one alone; leave it out")
        if self.profile is not None:
            raise UserError("--profile was given; serve traces nothing; leave it out, or use bench model")
