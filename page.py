"""
Look at a run, talk to its models and rank their answers in a browser.

    python page.py                          # then open http://127.0.0.1:8000
    python page.py --save=report.html       # the run alone, as one file that needs no server

The run is report.py's, talk is chat.py's, rankings are those of data/label.py. plumbing/page.html
asks by POST, in JSON, and is answered by lines of JSON. Nobody but this page may ask.
"""
import plumbing.cpu     # first: settings that only work before torch is loaded
import contextlib
import json
import os
import secrets
import threading
import time
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import torch

from chat import best_reply, examples, fit, load_models, pieces
from common import generator
from data import UserError, check_prompt, folder_of, read_jsonl, turns_of
from data.label import agreement, read_rankings, sample_different, save_ranking, shown_to
from data.vocab import Vocab
from plumbing.command_line import Common, entry, flag, lies_in, parse
from plumbing.stages import policies
from report import run_data, save_report, to_html

LONGEST, WAITING = 2 ** 16, 100     # bytes of a request; prompts shown and not yet ranked


@dataclass
class Config(Common):
    port: int = flag(8000, "of 127.0.0.1; 0: any that is free", "[0, 65535]")
    save: str = flag("", "write the run to this HTML file, and end")
    round: int = flag(1, "whose run is shown", "[1, inf)")


def number(ask, name, kind, within):
    """A number of a request. Raises UserError if it is none, or not in its range."""
    if type(ask.get(name)) not in (int, kind) or not lies_in(ask[name], within):
        raise UserError(f"{name} must be a number in {within}")
    return ask[name]


class Site:
    """What the page can ask for: `talk`, `next` and `rank` take a request, and return its answers.
    All are dictionaries. A UserError is what a person should read.
    It keeps networks, and the prompts that are being ranked; a tab keeps its own conversation.
    """

    def __init__(self, config):
        self.config, self.folder = config, folder_of(config.data)
        self.vocab, self.lock = Vocab(self.folder), threading.Lock()
        self.loaded, self.stamp, self.waiting = {}, None, {}
        self.rankings = os.path.join(self.folder, "comparisons.jsonl")
        self.examples = sorted(examples(self.folder).values(), key=len)[:6]

    def html(self):
        """The page, with the run as its files are now."""
        config, own = self.config, {"port", "save", "round"}
        flags = "".join(f" --{name}={getattr(config, name)}" for name in sorted(config.given - own))
        live = {"stages": policies(config.out), "file": self.rankings, "flags": flags,
                "examples": self.examples}
        return to_html(run_data(config.out, config.round) | {"live": live})

    def models(self, stages, best_of=1):
        """What load_models returns, kept until a checkpoint is replaced."""
        if not isinstance(stages, list) or not 0 < len(stages) <= 8:
            raise UserError("choose one stage at least, and eight at most")
        config = SimpleNamespace(**vars(self.config), stage=",".join(map(str, stages)),
                                 best_of=best_of)
        with self.lock, os.scandir(config.out) as files:
            stamp = sorted((f.name, f.stat().st_mtime_ns) for f in files
                           if f.name.endswith(".pt") and ".resume." not in f.name)
            if stamp != self.stamp or len(self.loaded) > 4:
                self.loaded, self.stamp = {}, stamp
            key = config.stage, best_of > 1
            if key not in self.loaded:
                self.loaded[key] = load_models(config, self.vocab)
            return self.loaded[key]

    # ---- talk ----

    def talk(self, ask):
        """{turns: {stage: what was said, the new message last}, temperature, best_of}
        → {stage, text: a piece} …, {stage, done: the whole answer, note}, of all stages in turn"""
        temperature = number(ask, "temperature", float, "0 or [0.001, 100]")
        n, said = number(ask, "best_of", int, "[1, 64]"), ask.get("turns")
        if n > 1 and temperature == 0:
            raise UserError("the best of several needs a temperature above 0: else all are alike")
        if not isinstance(said, dict):
            raise UserError("turns must be an object, {stage: turns}")
        models, *judge = self.models(list(said), n)
        longest, seed, streams = self.config.max_new_tokens, time.time_ns(), {}
        for stage, model in models.items():
            check_prompt(said.get(stage), "this conversation")
            seen = fit(turns_of(said[stage]), self.vocab, model.config.block_size - longest)
            cut = len(turns_of(said[stage])) - len(seen)
            options = dict(max_new_tokens=longest, temperature=temperature, eos=self.vocab.eos,
                           generator=generator(seed))
            streams[stage] = self.answer(model, self.vocab.prompt(seen), n, judge, options, cut)
        return in_turn(streams)

    def answer(self, model, ids, n, judge, options, cut):
        """One stage's answer; cut: how many messages before it the model can't read."""
        whole, note = "", f"the first {cut} messages are no longer read" if cut else ""
        if n > 1:
            best, scores = best_reply(model, *judge, ids, self.vocab, n, options)
            whole, note = self.vocab.decode(best), f"{scores} {note}"
        for _, piece in pieces(model, ids, self.vocab, options) if n == 1 else ():
            whole += piece
            yield {"text": piece}
        yield {"done": whole.strip(), "note": note}

    # ---- rank ----

    def next(self, ask):
        """{labeler, stages, answers: how many, after: a place in the order of prompts} → the next
        prompt that the labeler has not ranked: {ticket, place, prompt, answers, mine, agreement}"""
        labeler, after = str(ask.get("labeler"))[:40], number(ask, "after", int, "[-1, inf)")
        config = SimpleNamespace(**vars(self.config), temperature=1.0,
                                 answers=number(ask, "answers", int, "[2, 9]"))
        models = list(self.models(ask.get("stages"))[0].values())
        room = min(model.config.block_size for model in models) - config.max_new_tokens
        path, rows = os.path.join(self.folder, "prompts.jsonl"), read_rankings(self.rankings)
        prompts = [row["prompt"] for row in read_jsonl(path, ["prompt"], "train")]
        order = torch.randperm(len(prompts), generator=generator(config.seed, "label")).tolist()
        mine = [row["prompt"] for row in rows if row["labeler"] == labeler]
        said = {"mine": len(mine), "agreement": agreement(rows, labeler), "ticket": None}
        for place, i in list(enumerate(order))[after + 1:]:
            prompt, ids = prompts[i], self.vocab.prompt(prompts[i])
            todo = prompt not in mine and len(ids) <= room
            responses = sample_different(models, ids, i, self.vocab, config) if todo else []
            if len(responses) > 1:
                shown, ticket = shown_to(labeler, i, responses), secrets.token_hex(8)
                with self.lock:
                    self.waiting[ticket] = prompt, responses, shown, labeler
                    self.waiting = dict(list(self.waiting.items())[-WAITING:])
                return [said | dict(ticket=ticket, place=place, prompt=turns_of(prompt),
                                    answers=shown)]
        return [said]

    def rank(self, ask):
        """{ticket, order: such as `2 > 1 = 3`} → {saved}: the ranking is on the disk by then.
        A ticket counts once: a second click, or a second tab, writes nothing."""
        ticket, order = str(ask.get("ticket")), str(ask.get("order"))
        with self.lock:
            if ticket not in self.waiting:
                raise UserError("this prompt is ranked already, or too old: take the next one")
            prompt, responses, shown, labeler = self.waiting[ticket]
            try:
                save_ranking(self.rankings, prompt, responses, shown, order, labeler)
            except ValueError as e:
                raise UserError(str(e)) from None
            del self.waiting[ticket]
        return [{"saved": True}]


def in_turn(streams):
    """{name: generator} → their items, one of each in turn, with the name."""
    while streams:
        for name in list(streams):
            if item := next(streams[name], None):
                yield {"stage": name} | item
            else:
                del streams[name]


class Handler(BaseHTTPRequestHandler):
    """HTTP for a Site: GET / is the page; POST /talk, /next and /rank are its methods."""

    timeout, disable_nagle_algorithm = 30, True     # seconds of silence; tokens don't wait

    def refusal(self):
        """Why a request is not answered: (status, sentence), or None."""
        here = [f"{name}:{self.server.server_port}" for name in ("127.0.0.1", "localhost")]
        headers, host = self.headers, self.headers["Host"]
        length = headers.get("Content-Length", "")
        if host not in here:        # a foreign name that leads here
            return 403, "this server answers to 127.0.0.1 and localhost alone"
        if self.command == "POST" and (
                headers.get("Origin", f"http://{host}") != f"http://{host}"
                or headers.get("Sec-Fetch-Site", "same-origin") != "same-origin"
                or headers.get_content_type() != "application/json"):
            return 403, "only this server's own page may ask, and in JSON"
        if self.path not in {"GET": ["/"], "POST": ["/talk", "/next", "/rank"]}[self.command]:
            return 404, "there are GET / and POST /talk, /next and /rank"
        if self.command == "POST" and not (length.isdecimal() and int(length[:9]) <= LONGEST):
            return 413, f"a request must give its length, {LONGEST:,} bytes at most"

    def start(self, status, kind):
        self.send_response(status)
        for line in (f"Content-Type: {kind}; charset=utf-8", "Cache-Control: no-store",
                     "X-Frame-Options: DENY", "X-Content-Type-Options: nosniff"):
            self.send_header(*line.split(": "))
        self.end_headers()

    def do_GET(self):
        try:
            status, body = self.refusal() or (200, self.server.site.html())
        except UserError as e:
            status, body = 500, str(e)
        self.start(status, "text/html" if status == 200 else "text/plain")
        self.wfile.write(body.encode())

    def do_POST(self):
        status, error = self.refusal() or (200, "")
        items = [{"error": error}]
        if not error:
            try:
                items = getattr(self.server.site, self.path[1:])(self.question())
            except UserError as e:
                status, items = 400, [{"error": str(e)}]
        self.start(status, "application/x-ndjson")
        for item in items:
            self.wfile.write(json.dumps(item).encode() + b"\n")

    def question(self):
        with contextlib.suppress(ValueError, RecursionError):
            ask = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if isinstance(ask, dict):
                return ask
        raise UserError("a request is an object in JSON")

    def handle(self):
        with contextlib.suppress(ConnectionError):      # a browser that goes away ends its answer
            super().handle()

    def log_message(self, *args):
        pass


def serve(config):
    """→ a server, not yet running. Raises UserError if the port is taken."""
    try:
        server = ThreadingHTTPServer(("127.0.0.1", config.port), Handler)
    except OSError as e:
        raise UserError(f"--port={config.port} can't be had: {e.strerror}; give another") from None
    server.site = Site(config)
    return server


def main():
    config = parse(Config, __doc__)
    if not os.path.isdir(config.out):
        raise UserError(f"--out={config.out} is no folder: python ppo.py makes one, with a run")
    if config.save:
        save_report(config.save, config.out, config.round)
        return print(f"wrote {config.save}")
    server = serve(config)
    print(f"http://127.0.0.1:{server.server_port} shows {config.out}; Ctrl-C ends", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    entry(main)
