"""page.py, asked by an HTTP client; what PPO logs for it; and the page itself in a browser."""

import contextlib
import http.client
import json
import shutil
import socket
import threading

import pytest
import torch

import page
import report
import rollout
from conftest import equal, log_of, parents_only, run_little
from data import read_jsonl
from plumbing.checkpoint import load, save
from plumbing.command_line import parse

EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(2)>"


def config_of(data, out, *flags):
    argv = [f"--data={data}", f"--out={out}", "--size=smoke", "--device=cpu", "--dtype=float32"]
    return parse(page.Config, page.__doc__, argv=[*argv, "--max_new_tokens=12", *flags])


@contextlib.contextmanager
def running(little, whole, folder):
    data, out = (shutil.copytree(x, folder / x.name) for x in (little[0], whole))
    server = page.serve(config_of(data, out, "--port=0"))
    threading.Thread(target=server.serve_forever, args=[0.01], daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def server(little, whole, tmp_path):
    """A server that runs, on a copy of a finished run and its data."""
    with running(little, whole, tmp_path) as server:
        yield server


@pytest.fixture(scope="module")
def shared(little, whole, tmp_path_factory):
    """One for all tests that write no file."""
    with running(little, whole, tmp_path_factory.mktemp("shared")) as server:
        yield server


def request(server, method, path, body=None, **headers):
    """→ (status, text). A header that is None is not sent."""
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=5)
    headers = {name.replace("_", "-"): value for name, value in headers.items()}
    headers = {"Host": f"127.0.0.1:{server.server_port}"} | headers
    connection.putrequest(method, path, skip_host=True)
    for name, value in headers.items():
        connection.putheader(name, value)
    connection.endheaders(body)
    answer = connection.getresponse()
    found = answer.status, answer.read().decode()
    connection.close()
    return found


def ask(server, path, question, **headers):
    """→ (status, the items of the answer)"""
    body = question if isinstance(question, bytes) else json.dumps(question).encode()
    usual = {"Content_Type": "application/json", "Content_Length": str(len(body))}
    status, text = request(server, "POST", path, body, **usual | headers)
    return status, [json.loads(line) for line in text.splitlines()]


def said(*messages):
    return [{"role": ("user", "assistant")[i % 2], "content": m} for i, m in enumerate(messages)]


def talk(server, stages=("sft",), message="Hi.", **more):
    turns = {stage: said(message) for stage in stages}
    return ask(server, "/talk", {"turns": turns, "temperature": 0, "best_of": 1} | more)


# ---- who may ask ----


@pytest.mark.parametrize("host", ["evil.example", "evil.example:{port}", "127.0.0.1:1", ""])
def test_a_foreign_name_that_leads_to_this_computer_is_refused(shared, host):
    host = host.format(port=shared.server_port)
    status, text = request(shared, "GET", "/", Host=host)
    assert status == 403 and "<html" not in text
    assert talk(shared)[0] == 200
    assert ask(shared, "/talk", {}, Host=host)[0] == 403


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:1"},
        {"Sec_Fetch_Site": "cross-site"},
        {"Sec_Fetch_Site": "same-site"},
        {"Content_Type": "text/plain"},
        {"Content_Type": "application/x-www-form-urlencoded"},
    ],
    ids=str,
)
def test_another_page_can_post_nothing(shared, monkeypatch, headers):
    monkeypatch.setattr(shared.site, "talk", lambda question: pytest.fail("it was answered"))
    question = {"turns": {"sft": said("Hi.")}, "temperature": 1, "best_of": 1}
    status, ((found),) = ask(shared, "/talk", question, **headers)
    assert status == 403 and "own page" in found["error"]


def test_the_page_itself_may_ask(shared):
    origin = f"http://127.0.0.1:{shared.server_port}"
    question = {"turns": {"sft": said("Hi.")}, "temperature": 1, "best_of": 1}
    assert ask(shared, "/talk", question, Origin=origin, Sec_Fetch_Site="same-origin")[0] == 200


@pytest.mark.parametrize(
    "body, headers, status",
    [
        (b"", {"Content_Length": str(10**9)}, 413),
        (b"", {"Content_Length": "9" * 5000}, 413),
        (b"", {"Content_Length": "-1"}, 413),
        (b"", {"Content_Length": "x"}, 413),
        (b"{", {}, 400),
        (b"[]", {}, 400),
        (b"[" * 60000, {}, 400),
        (b"\xff\xfe", {}, 400),
        (b"{}", {}, 400),
    ],
    ids=[
        "huge",
        "too long a number",
        "negative",
        "no number",
        "cut",
        "a list",
        "deep",
        "no UTF-8",
        "empty",
    ],
)
def test_what_is_no_request_is_said_so(shared, body, headers, status):
    found, items = ask(shared, "/talk", body, **headers)
    assert found == status and len(items[0]["error"]) > 10
    assert talk(shared)[0] == 200, "one bad request ended the server"


@pytest.mark.parametrize("path", ["/ppo.pt", "/../ppo.pt", "/models", "/__init__", "/html"])
def test_nothing_else_can_be_read_or_called(shared, path):
    assert request(shared, "GET", path)[0] == 404
    assert ask(shared, path, {})[0] == 404


@pytest.mark.parametrize(
    "change, says",
    [
        ({"temperature": "1"}, "temperature"),
        ({"temperature": -1}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"best_of": 10**6, "temperature": 1}, "best_of"),
        ({"best_of": True, "temperature": 1}, "best_of"),
        ({"best_of": 2}, "above 0"),
        ({"turns": {}}, "one stage"),
        ({"turns": {"../sft": said("Hi.")}}, "can't talk"),
        ({"turns": {"sft,ppo": said("Hi.")}}, "list of turns"),
        ({"turns": {"reward": said("Hi.")}}, "can't talk"),
        ({"turns": {"sft": 5}}, "list of turns"),
        ({"turns": {"sft": said("Hi.", "Ho.")}}, "user"),
        ({"turns": {"sft": said("dog " * 500)}}, "tokens"),
    ],
    ids=str,
)
def test_a_wrong_setting_is_one_sentence(shared, change, says):
    status, ((found),) = talk(shared, **change)
    assert status == 400 and says in found["error"]


# ---- talk ----


def test_all_stages_answer_side_by_side_and_as_in_the_terminal(server):
    status, items = talk(server, ("pretrain", "sft"), "What is Ben's job?")
    assert status == 200
    site, streamed = server.site, [item["stage"] for item in items if "text" in item]
    assert streamed[:4] == ["pretrain", "sft"] * 2, "one waits until the other has ended"
    models, *_ = site.models(["pretrain", "sft"])
    for stage, model in models.items():
        ids = site.vocab.prompt("What is Ben's job?")
        (answer,) = page.load_models.__globals__["sampling"].generate(
            model, [ids], 12, 0, eos=site.vocab.eos
        )
        expected = site.vocab.decode(answer).strip()
        (done,) = [item["done"] for item in items if item["stage"] == stage and "done" in item]
        pieces = "".join(item.get("text", "") for item in items if item["stage"] == stage)
        assert done == pieces.strip() == expected


def test_each_stage_reads_its_own_conversation(server, monkeypatch):
    read = []
    monkeypatch.setattr(page, "pieces", lambda model, ids, *a: read.append(ids) or iter([(1, "a")]))
    turns = {"sft": said("Hi.", "Ho.", "Who?"), "ppo": said("Who?")}
    assert talk(server, turns=turns)[0] == 200
    assert read == [server.site.vocab.prompt(turns[stage]) for stage in ("sft", "ppo")]


def test_the_best_of_several_is_the_reward_models_choice(server):
    status, ((found),) = talk(server, best_of=4, temperature=1)
    assert status == 200 and "the 4 from" in found["note"] and found["done"]


@pytest.fixture
def endless(monkeypatch):
    """Answers never end by themselves → (set when one is going, set when it is given up)."""
    going, given_up = threading.Event(), threading.Event()

    def pieces(*args):
        try:
            while True:
                going.set()
                yield 1, "word " * 1000
        finally:
            given_up.set()

    monkeypatch.setattr(page, "pieces", pieces)
    return going, given_up


def open_answer(server):
    """A browser that reads nothing of its answer. → its socket"""
    body = json.dumps({"turns": {"sft": said("Hi.")}, "temperature": 1, "best_of": 1})
    browser = socket.create_connection(("127.0.0.1", server.server_port))
    head = f"POST /talk HTTP/1.1\r\nHost: 127.0.0.1:{server.server_port}\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    browser.sendall((head + body).encode())
    return browser


def test_a_browser_that_goes_away_ends_its_answer_and_no_other(server, endless, capfd):
    going, given_up = endless
    browser = open_answer(server)
    assert going.wait(5)
    status, text = request(server, "GET", "/")
    assert status == 200, "a second tab waits for the first one's answer"
    browser.close()
    assert given_up.wait(5), "the server samples on for a browser that went away"
    assert "Traceback" not in capfd.readouterr().err
    assert request(server, "GET", "/")[0] == 200


def test_a_checkpoint_that_is_replaced_is_read_again_and_only_then(server, monkeypatch):
    loads, load_models = [], page.load_models
    monkeypatch.setattr(page, "load_models", lambda *a: loads.append(1) or load_models(*a))
    before = talk(server)[1][-1]["done"]
    talk(server)
    assert len(loads) == 1, "a checkpoint is read for every message"
    path = f"{server.site.config.out}/sft.pt"
    content = load(path)
    for weights in content["model"].values():
        weights.copy_(torch.randn(weights.shape) * 0.3)
    save(path, content)
    assert talk(server)[1][-1]["done"] != before and len(loads) == 2, "the old model answers"


# ---- rank ----


def next_prompt(server, labeler="one", after=-1, answers=3):
    question = {"labeler": labeler, "stages": ["sft"], "answers": answers, "after": after}
    status, ((found),) = ask(server, "/next", question)
    assert status == 200, found
    return found


def test_a_ranking_is_on_the_disk_before_the_next_prompt_and_once(server):
    for labeler in "abcdefgh":  # one who sees the answers in another order than they are saved in
        task = next_prompt(server, labeler)
        _, responses, shown, _ = server.site.waiting[task["ticket"]]
        if responses != shown:
            break
    assert len(task["answers"]) == 3 and task["agreement"] is None
    path = server.site.rankings
    status, ((found),) = ask(server, "/rank", {"ticket": task["ticket"], "order": "2 > 9"})
    assert status == 400 and "no answer '9'" in found["error"]
    right = {"ticket": task["ticket"], "order": "2 > 1 > 3"}
    assert ask(server, "/rank", right) == (200, [{"saved": True}])
    (row,) = read_jsonl(path, ["prompt", "responses", "ranks"])
    assert [row["ranks"][row["responses"].index(x)] for x in task["answers"]] == [2, 1, 3], (
        "the ranks are not those of the answers as they were shown"
    )
    status, ((found),) = ask(server, "/rank", right)
    assert status == 400 and "already" in found["error"]
    assert len(read_jsonl(path, ["prompt"])) == 1, "a second click wrote the ranking twice"

    further = next_prompt(server, labeler, after=task["place"])
    assert further["prompt"] != task["prompt"] and further["mine"] == 1
    again = next_prompt(server, labeler)
    assert again["place"] == further["place"], "a prompt comes back that was ranked"


def test_two_labelers_see_the_same_answers_and_how_often_they_agree(server):
    one, two = next_prompt(server, "one"), next_prompt(server, "two")
    assert one["prompt"] == two["prompt"] and sorted(one["answers"]) == sorted(two["answers"])
    for task in (one, two):
        best_first = sorted(range(3), key=lambda i: task["answers"][i])
        order = " > ".join(str(i + 1) for i in best_first)
        assert ask(server, "/rank", {"ticket": task["ticket"], "order": order})[0] == 200
    share, _, pairs = next_prompt(server, "two")["agreement"]
    assert (share, pairs) == (1, 3), "they put the answers into the same order"


def test_answers_that_were_shown_are_ranked_though_the_checkpoint_changes(server):
    task = next_prompt(server)
    shutil.copy(f"{server.site.config.out}/sft.pt", f"{server.site.config.out}/ppo-2.pt")
    talk(server)
    assert ask(server, "/rank", {"ticket": task["ticket"], "order": "1 > 2 > 3"})[0] == 200
    (row,) = read_jsonl(server.site.rankings, ["responses"])
    assert sorted(row["responses"]) == sorted(task["answers"])


# ---- the run ----


def data_of(html):
    start = html.index('type="application/json">') + len('type="application/json">')
    return json.loads(html[start : html.index("</script>", start)])


def test_a_models_html_stays_text(server):
    path = f"{server.site.config.out}/ppo.answers.jsonl"
    lines = log_of(server.site.config.out, "ppo.answers")
    lines[0]["answers"][0]["tokens"][0] = EVIL
    with open(path, "w") as f:
        f.writelines(json.dumps(line) + "\n" for line in lines)
    status, html = request(server, "GET", "/")
    assert status == 200 and EVIL not in html
    assert html.count("<script") == html.count("</script") == 2
    assert data_of(html)["answers"]["steps"][0]["answers"][0]["tokens"][0] == EVIL
    script = html.rpartition("<script>")[2]
    for way in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("):
        assert way not in script, f"{way} makes HTML of a text"
    assert "sha256-" in html and "SCRIPT-HASH" not in html and "PAGE-DATA" not in html


def test_a_run_without_some_of_its_files_is_shown_as_far_as_it_is_there(tmp_path):
    found = report.run_data(str(tmp_path))
    assert found["curves"] == [] and found["table"] is None and found["answers"] is None
    (tmp_path / "ppo.jsonl").write_text('{"step": 0, "episode": 8, "objective/kl": NaN}\n{"st')
    html = report.to_html(report.run_data(str(tmp_path)))
    assert data_of(html)["curves"][0]["lines"][0]["points"] == [[1, None]], "NaN is not JSON"


def test_a_long_curve_is_thinned_to_means():
    log = [{"step": i, "loss": float(i)} for i in range(1000)]
    points = report.curve(log, "loss")
    assert len(points) == 200 and points[0] == [3.0, 2.0] and points[-1] == [998.0, 997.0]


def test_the_report_needs_no_server(whole, tmp_path):
    path = tmp_path / "report.html"
    report.save_report(str(path), str(whole))
    html = path.read_text(encoding="utf-8")
    found = data_of(html)
    assert "live" not in found and len(found["answers"]["steps"]) == 3 and found["curves"]
    assert "http://" not in html.replace("http://www.w3.org/2000/svg", "")


def test_the_same_prompts_are_answered_in_every_iteration(whole):
    lines = log_of(whole, "ppo.answers")
    assert [line["step"] for line in lines] == [0, 1, 2]
    prompts = [[answer["prompt"] for answer in line["answers"]] for line in lines]
    assert len(prompts[0]) == 9 and prompts[0] == prompts[1] == prompts[2], "all there are, of 16"
    first, last = lines[0]["answers"], lines[-1]["answers"]
    assert all(answer["logprobs"] == answer["ref_logprobs"] for answer in first), (
        "before the first update the policy is SFT's model"
    )
    assert any(answer["logprobs"] != answer["ref_logprobs"] for answer in last)
    for answer in first:
        lengths = {len(answer[k]) for k in ("tokens", "logprobs", "ref_logprobs", "values")}
        assert len(lengths) == 1


def test_the_numbers_below_the_tokens_are_ppos_own():
    answer = {"prompt": "Hi.", "tokens": ["a", "b"], "score": 1.0, "gold": None}
    answer |= {"logprobs": [-1.0, -2.0], "ref_logprobs": [-1.5, -1.0], "values": [0.5, 0.25]}
    short = answer | {k: answer[k][:1] for k in ("tokens", "logprobs", "ref_logprobs", "values")}
    line = {"step": 0, "iterations": 1, "beta": 0.1, "gamma": 1.0, "lam": 0.5}
    found = report.answers([line | {"answers": [answer, short]}])["steps"][0]["answers"]
    assert found[0]["kl"] == [0.5, -1.0]
    # rewards −0.05 and 0.1 + 1; δ = −0.05 + 0.25 − 0.5 and 1.1 − 0.25
    assert found[0]["advantage"] == [round(-0.3 + 0.5 * 0.85, 3), 0.85]
    assert found[1]["advantage"] == [round(0.95 - 0.5, 3)], "the score of a short answer is lost"


def test_to_log_answers_changes_nothing_in_training(little, whole, tmp_path, monkeypatch):
    data, before = little
    monkeypatch.setattr("ppo.log_answers", lambda *a: None)
    out = parents_only("ppo", before, tmp_path / "out")
    run_little("ppo", data, out)
    theirs, ours = load(str(whole / "ppo.pt")), load(str(out / "ppo.pt"))
    assert equal(theirs["model"], ours["model"]), "training draws other random numbers"
    for a, b in zip(log_of(whole, "ppo"), log_of(out, "ppo"), strict=True):
        timed = ("seconds", "tokens_per_second")
        assert {k: v for k, v in a.items() if not k.startswith(timed)} == {
            k: v for k, v in b.items() if not k.startswith(timed)
        }


def test_a_long_run_keeps_few_answers_and_one_that_goes_on_none_twice(
    little, tmp_path, monkeypatch
):
    data, before = little
    monkeypatch.setattr(rollout, "KEPT", 2)
    out = parents_only("ppo", before, tmp_path / "out")
    (out / "ppo.answers.jsonl").write_text('{"step": 0}\n{"step": 2}\n{"step": 7}\n{"st')
    few = ["--iterations=4", "--episodes=2", "--minibatches=1", "--ppo_epochs=1"]
    run_little("ppo", data, out, *few)
    assert [line["step"] for line in log_of(out, "ppo.answers")] == [0, 2]


# ---- the page in a browser ----


@pytest.fixture
def browser_page(server):
    """The page in headless Chromium, and what its console said."""
    playwright = pytest.importorskip("playwright.sync_api", reason="needs pip install playwright")
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if not chromium:
        pytest.skip("needs Chromium: apt-get install chromium")
    errors = []
    with playwright.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        tab = browser.new_page(viewport={"width": 400, "height": 800})
        tab.set_default_timeout(20_000)
        tab.on("pageerror", lambda e: errors.append(str(e)))
        tab.on("console", lambda m: errors.append(m.text) if m.type == "error" else None)
        tab.goto(f"http://127.0.0.1:{server.server_port}/")
        yield tab
        browser.close()
    assert not errors, f"the page's script fails: {errors}"


def test_a_person_looks_talks_and_ranks_in_a_browser(server, browser_page):
    tab, path = browser_page, f"{server.site.config.out}/ppo.answers.jsonl"
    lines = log_of(server.site.config.out, "ppo.answers")
    for answer in lines[0]["answers"]:
        answer["values"] = [0.5 for value in answer["values"]]
    with open(path, "w") as f:
        f.writelines(json.dumps(line) + "\n" for line in lines)
    tab.reload()
    assert tab.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0, "400 pixels"

    # the slider shows another iteration, the keyboard another token
    assert tab.inner_text("#iteration") == "iteration 3 of 3"
    tab.focus("#step")
    tab.keyboard.press("Home")
    assert tab.inner_text("#iteration") == "iteration 1 of 3 (SFT)"
    numbers = tab.locator(".tokens span small")
    assert set(numbers.all_inner_texts()) == {"0.00"}, "SFT's answers have a KL to SFT"
    tab.check("input[value=values]")
    assert set(numbers.all_inner_texts()) == {"+0.50"}
    tab.locator(".tokens span").first.focus()
    tab.keyboard.press("ArrowRight")
    second = tab.locator(".tokens").first.locator("span").nth(1)
    assert tab.inner_text("#about") == second.get_attribute("data-about")

    # what a model writes is text
    evil = iter([(1, EVIL)])
    with pytest.MonkeyPatch.context() as m:
        m.setattr(page, "pieces", lambda *a: evil)
        tab.click("nav [data-part=talk]")
        tab.uncheck("#talk input[value=pretrain]")
        tab.uncheck("#talk input[value=ppo]")
        tab.fill("#message", "Hi.")
        tab.keyboard.press("Enter")
        tab.locator("#said-sft .assistant small").wait_for(state="attached")
        tab.locator("#stop").wait_for(state="hidden")
    assert tab.inner_text("#said-sft .assistant").strip() == EVIL
    assert tab.locator("#said-sft img, #said-sft script").count() == 0
    tab.reload()
    assert "Hi." in tab.inner_text("#said-sft"), "a reload forgets the conversation"

    # an order by the keyboard, saved before the next prompt shows
    tab.click("nav [data-part=rank]")
    tab.fill("#many", "3")
    tab.click("#begin")
    tab.locator("#choices li").nth(2).wait_for()
    before = tab.inner_text("#prompt")
    tab.locator("#choices li").nth(2).get_by_text("↑").press("Enter")
    tab.locator("#choices li").nth(1).get_by_text("=").press("Enter")
    assert tab.input_value("#order") == "1 = 3 > 2"
    shown = tab.locator("#choices .text").all_inner_texts()
    tab.click("#decide .main")
    tab.get_by_text("1 of your rankings").wait_for()
    (row,) = read_jsonl(server.site.rankings, ["responses", "ranks"])
    assert [row["ranks"][row["responses"].index(text)] for text in shown] == [1, 1, 3]
    assert tab.inner_text("#prompt") != before
    assert "reward.py --sources=file --fresh" in tab.inner_text("#train")


def test_an_order_that_is_dragged_in_a_browser_is_the_one_that_is_saved(server, browser_page):
    tab = browser_page

    def drag(name, to, below):
        """Hold answer `name` over the lower, or the upper, half of answer `to`, and let go."""
        boxes = [tab.locator(f"#choice-{x}").bounding_box() for x in (name, to)]
        (x, y), (to_x, to_y) = ((box["x"] + 30, box["y"] + box["height"] / 2) for box in boxes)
        tab.mouse.move(x, y)
        tab.mouse.down()
        tab.mouse.move(to_x, to_y + (8 if below else -8), steps=8)
        tab.mouse.up()
        return tab.input_value("#order")

    tab.click("nav [data-part=rank]")
    tab.fill("#many", "3")
    tab.click("#begin")
    tab.locator("#choices li").nth(2).wait_for()
    tab.locator("#decide").scroll_into_view_if_needed()
    shown = tab.locator("#choices .text").all_inner_texts()
    assert drag(3, 1, below=False) == "3 > 1 > 2", "dragging up does not change the order"
    assert drag(3, 2, below=True) == "1 > 2 > 3", "dragging down does not change the order"
    tab.locator("#choice-3").get_by_text("=").click()
    assert drag(1, 3, below=True) == "2 = 3 > 1", "a tie is lost"
    assert drag(3, 2, below=False) == "3 > 2 > 1"
    assert drag(1, 3, below=False) == "1 > 3 > 2", "the first answer was on a par with nothing"
    tab.click("#decide .main")
    tab.get_by_text("1 of your rankings").wait_for()
    (row,) = read_jsonl(server.site.rankings, ["responses", "ranks"])
    assert [row["ranks"][row["responses"].index(text)] for text in shown] == [1, 3, 2]
