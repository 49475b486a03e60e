# make up     install and start the server; TORCH=cpu leaves CUDA out
# make up-distributed   the same in its production shape: RabbitMQ, MongoDB, Ray, control plane, two gateways
# make test   everything the tests promise, with coverage
# make check  format, lint, types
# make bench  measure against the echo; ARGS="--quick --only rest-json" narrows it
# make bench-peers   measure beside other inference servers, each in an environment of its own; ARGS as for bench
# make simulate   the batching policy in virtual time, beside other rules and the optimum; ARGS as for bench
# make load   hold the server to its latency budgets, as CI does; load-full: every scenario; load-proof: by hand, over an hour
# make alerts   Prometheus rules from the same budgets
.PHONY: up up-distributed test check bench bench-peers simulate load load-full load-proof alerts requirements

up:
	@sh requirements/install workers
	@exec .venv/bin/penstock up

up-distributed:
	@sh requirements/install workers
	@exec .venv/bin/penstock up --distributed

test:
	@sh requirements/install dev
	.venv/bin/python -m pytest -n auto --maxprocesses 4 --dist loadfile --cov --cov-report=term $(ARGS)

check:
	@sh requirements/install dev
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	.venv/bin/mypy

bench:
	@sh requirements/install dev
	.venv/bin/python -m benchmarks.bench $(ARGS)

bench-peers:
	@sh requirements/install dev
	.venv/bin/python -m benchmarks.peers $(ARGS)

simulate:
	@sh requirements/install dev
	.venv/bin/python -m benchmarks.simulation $(ARGS)

load:
	@sh requirements/install dev
	.venv/bin/python -m loadtests $(ARGS)

load-full:
	@sh requirements/install dev
	.venv/bin/python -m loadtests --full $(ARGS)

load-proof:
	@sh requirements/install dev
	.venv/bin/python -m loadtests.proof $(ARGS)

alerts:
	@sh requirements/install dev
	.venv/bin/python -m loadtests.alerts deploy/alerts.yml

# One resolution for all: the largest set first, the others under its versions. `UPGRADE=--upgrade` moves the unpinned.
COMPILE = cd requirements && ../.venv/bin/uv pip compile --quiet --universal --fork-strategy fewest \
	--python-version 3.11 --generate-hashes --no-emit-index-url --no-header $(UPGRADE)
requirements:
	@sh requirements/install dev
	$(COMPILE) -o dev.txt dev.in
	$(COMPILE) -o uv.txt uv.in
	for set in client gateway workers load; do ($(COMPILE) -c dev.txt -o $$set.txt $$set.in) || exit 1; done
	for peer in benchmarks/peers/requirements/*.in; do ($(COMPILE) -o ../$${peer%.in}.txt ../$$peer) || exit 1; done
