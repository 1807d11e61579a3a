"""Reads settings.ini: every `<extra>_requirements` key is an extra. The wheel carries `data` inside the package."""
import shutil
from configparser import ConfigParser
from pathlib import Path

import setuptools
from setuptools.command.build_py import build_py


class BuildWithData(build_py):
    "A clone has its data beside the package, where the README's paths lead; an installed one in `fakd/shipped`."

    def run(self):
        super().run()
        for folder in () if self.editable_mode else ("weights", "published"):
            shutil.copytree(Path("data", folder), Path(self.build_lib, "fakd/shipped/data", folder), dirs_exist_ok=True,
                            ignore=shutil.ignore_patterns(".*"))


cfg = ConfigParser(delimiters=["="])
cfg.read("settings.ini", encoding="utf-8")
s = cfg["DEFAULT"]

setuptools.setup(
    name=s["lib_name"],
    version=s["version"],
    description=s["description"],
    long_description=Path("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author=s["author"],
    author_email=s["author_email"],
    url=s["git_url"],
    license="Apache-2.0",
    keywords=s["keywords"].split(),
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Science/Research",
        "Natural Language :: English",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
    ],
    packages=setuptools.find_packages(include=["fakd", "fakd.*"]),
    package_data={"fakd": ["static/*", "py.typed"]},
    cmdclass={"build_py": BuildWithData},
    python_requires=">=" + s["min_python"],
    install_requires=s["requirements"].split(),
    extras_require={k.removesuffix("_requirements"): v.split() for k, v in s.items() if k.endswith("_requirements")},
    entry_points={"console_scripts": s.get("console_scripts", "").split()},
    zip_safe=False,
)
